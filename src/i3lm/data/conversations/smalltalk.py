"""Greetings, feelings, thanks, help, goodbyes, and words the assistant does not understand."""

from i3lm.data.conversations.flows import flows
from i3lm.data.conversations.lexicon import NAMES
from i3lm.data.conversations.stories import story
from i3lm.data.conversations.talk import Talk

_HOW = """
>I am fine. | I am fine, thank you. | I am fine, thanks. | Fine. = I am glad to hear that.
>I am good. | Good. | Good, thank you. | I'm great! | Great! = Good! What shall we talk about?
>Not bad. | I am okay. | So so. = That is all right. I hope your day gets better and better.
>Very well, thanks. | I am very well. | Very good. = I am glad to hear that.
>Not so good. | Bad. | Not good. | Not so well. = I am sorry to hear that. What happened?
>>I lost my {object}. = I am sorry. I hope you find your {object} soon.
>>I am tired. | I did not sleep well. = Then you should rest a little.
>>I had a bad day. | It was a bad day. = I am sorry. I hope tomorrow is a better day.
>>I do not want to talk about it. | Nothing. = All right. I am here if you need me.
"""
GREETINGS = flows(
    f"""
Hi! | Hello! | Hi. | Hello. | Hi there! | Hello there! = Hello! How are you?
{_HOW.strip()}
How are you? | Hello, how are you? | Hi, how are you? | How are you doing? | How are you today?
  | How do you do? | How is it going? | Are you okay? = I am fine, thank you. How are you?
{_HOW.strip()}
Hey! | Hey. | Yo! | Hey there! | Hey i3! | Hi i3! | Hello i3! = Hey! What do you want to talk about?
>I do not know. | Anything. | Whatever you like. = We can talk about animals, food or stories.
>Animals. | Let's talk about animals. = I like animals. Which animal do you like?
>>I like {{liked}}. | {{Liked}}. = I like {{liked}}, too.
>Food. | Let's talk about food. = Good idea. What is your favourite food?
>>I like {{food}}. | {{Food}}. = Many people like {{food}}.
>Nothing. | I just want to say hello. = That is nice. Hello to you, too!
Good morning! | Good morning, i3! = Good morning! Did you sleep well?
>Yes. | Yes, I did. | Yes, thank you. = That is good to hear.
>No. | No, I did not. | Not really. = I am sorry. Perhaps you can rest later.
Good evening! | Good evening, i3! = Good evening! How was your day?
{_HOW.strip()}
Good afternoon! | Good day! = Good afternoon! How is your day?
{_HOW.strip()}
What's up? | Sup? | What is new? | How is life? = Not much. I am happy to talk with you.
Can we talk? | I want to talk. | Let's talk. | Talk to me. | Do you want to talk?
  = Of course! What do you want to talk about?
>{{Liked}}. | Let's talk about {{liked}}. = I like {{liked}}. Do you like them, too?
>>Yes. | Yes, I do. | Yes, very much. = That is nice.
>>No. | No, I do not. | Not so much. = That is all right. We can talk about something else.
>My day. | My {{relative}}. = I am listening. Tell me more.
Are you there? | Hello? | Anybody there? | Test. | Is anybody there?
  = Yes, I am here. How can I help you?
>I am bored. | I have nothing to do. = Shall I tell you a story?
>>No. | No, thank you. = All right. What do you want to talk about?
>I just want to talk. = Good. I like to talk with you.
Nice to meet you. | Nice to meet you, i3. | I am happy to meet you. = Nice to meet you, too!
""".replace("{{", "{").replace("}}", "}")
)

FEELINGS = flows("""
I am sad. | I feel sad. | I feel sad today. | I am so sad. | I am not happy. | I feel down.
  = I am sorry that you are sad. What happened?
>I lost my {object}. | I cannot find my {object}. = I am sorry. I hope you find your {object} soon.
>My {toy} is broken. | I broke my {toy}. = I am sorry about your {toy}. Perhaps you can mend it.
>My friend is away. | I miss my friend. = You can write your friend a letter.
>I miss my {relative}. = I am sure your {relative} thinks of you, too.
>I do not know. | Nothing. | I am just sad. = That is all right. I am here and I can listen.
>I do not want to talk about it. = All right. I am here if you need me.
I want to cry. | I am crying. = I am sorry. It is all right to cry. I am here with you.
I am happy. | I feel happy. | I am so happy today! | I feel good. | I feel great!
  = I am glad that you are happy! Why are you happy?
>I got a new {toy}. | I have a new {toy}. = A new {toy}! How nice.
>My {relative} is here. | My {relative} came to visit me. = How nice! Have fun with your {relative}.
>It is {day}. = {Day} is a good day.
>It is my birthday. = Happy birthday! I hope you have a wonderful day.
>I do not know. | I am just happy. = That is the best way to be happy.
It is my birthday today. | Today is my birthday! = Happy birthday! I hope you have a wonderful day.
I am tired. | I feel tired. | I am so tired. | I am sleepy. = You should rest a little.
>I worked all day. | I had a long day. = Then you need a good sleep.
>I cannot sleep. = Drink some warm milk and think of something nice.
I cannot sleep. = Drink some warm milk and think of something nice.
I am hungry. | I feel hungry. | I am very hungry. = You should eat something. What do you like?
>I like {food}. | {Food}. = Then eat some {food}. Enjoy your meal!
>I do not know. = How about some {dish}?
I am thirsty. | I feel thirsty. | I am very thirsty. = You should drink some {drink}.
I am angry. | I feel angry. | I am so angry. = I am sorry that you are angry. Take a deep breath.
>My {relative} took my {toy}. = Ask your {relative} to give it back.
>Okay. | I will try. = Good. I hope you feel better soon.
I am sick. | I feel sick. | I am ill. | I do not feel well. | I feel bad.
  = I am sorry to hear that. I hope you feel better soon.
I am cold. | I feel cold. | I am so cold. = Put on a warm {wear} and drink some tea.
I am hot. | I feel hot. | I am too hot. = Drink some cold water and sit in the shade.
I am scared. | I am afraid. | I feel scared. = Do not be afraid. I am here with you.
>It is dark. = Turn on a lamp, and it will not be dark.
>I had a bad dream. = It was only a dream. You are safe.
I am lonely. | I feel lonely. | I am alone. | I feel alone. | I have no friends.
  = I am here. We can talk as long as you like.
I am worried. | I feel worried. | I am nervous. = Why are you worried?
>I have a test on {day}. | I have a test. = I am sure you will do well.
>My {pet} is sick. = I hope your {pet} gets well soon.
>I do not know. = Take a deep breath. All will be well.
I am excited. | I feel excited. | I am so excited! = That is great! Why are you excited?
>I will visit my {relative}. = Have fun with your {relative}!
>I will go to {city}. | We will go to {city}. = Have a good trip to {city}!
>I will get {a_pet}. = {A_pet} is a good friend to have.
I am in love. = How nice! Love is a wonderful feeling.
I am proud. | I won a game! | I won! = Well done! You can be proud.
I passed my test. | I did it! = Well done! I knew that you could do it.
I had a good day. | My day was good. = I am glad to hear that. What did you do?
>I played {sport}. | I was at the {place}. = That sounds like fun.
>I met {name}. | I talked with {name}. = It is nice to meet a friend.
I had a bad day. | My day was bad. = I am sorry. I hope tomorrow is a better day.
""")
BORED = flows("""
I am bored. | I feel bored. | I am so bored. | I have nothing to do.
  = Shall I tell you a story? | You could play a game or read a book. Shall I tell you a story?
""")
_REFUSALS = ("No.", "No, thank you.", "Not now.")
_AGREES = ("Yes.", "Yes, please.", "Yes!", "Okay.", "Sure.")

THANKS = flows("""
Thank you! | Thanks! | Thanks. | Thank you. | Thanks a lot. = You are welcome!
Thank you very much. | Thank you so much! | Thank you for your help.
  = You are welcome. I am glad to help.
That is nice. | Nice. | Cool. | Great. | Wow! | That is great. = I am glad that you like it.
You are funny. | Haha. | Lol. | That is funny. = Thank you! I like to make you smile.
You are nice. | You are kind. | You are great. | You are good. | You are the best.
  = Thank you! You are nice, too.
I like you. | I love you. = Thank you! I like you, too.
You are smart. | You are clever. | Well done. | Good job. = Thank you! I try my best.
Sorry. | I am sorry. | Excuse me. = That is all right.
That is wrong. | You are wrong. | That is not right. | No, that is wrong.
  = I am sorry. I am small and I make mistakes.
You are stupid. | You are silly. | You are bad. | I do not like you. | I hate you.
  = I am sorry. I am small, but I try my best.
Okay. | Ok. | All right. | I see. | Yes. | Good. = Good! What else do you want to talk about?
No. | Nothing. | No, thank you. | Stop. = All right. I am here if you need me.
Really? | Are you sure? = I think so, but I am small and I make mistakes.
Why? = I do not know why. I know only simple things.
""")
GOODBYES = flows("""
Bye! | Bye. | Bye bye! | Bye, i3! = Bye! See you soon.
Goodbye! | Goodbye. | Goodbye, i3! = Goodbye! It was nice to talk with you.
Good night! | Good night. | I am going to bed. | I want to sleep now. = Good night! Sleep well.
See you later! | See you! | See you soon! = See you later! Have a nice day.
I have to go. | I must go now. | I need to go. | I have to go now. | I am leaving.
  = All right. Goodbye, and have a nice day!
See you tomorrow! | Bye, see you tomorrow! = See you tomorrow!
Have a nice day! | Have a good day! = Thank you! You have a nice day, too.
""")
HELP = flows("""
Can you help me? | I need help. | Help me, please. | Help! | Please help me.
  = I will try to help you. What do you need?
>I lost my {object}. | I cannot find my {object}. = Look {room}. Perhaps your {object} is there.
>I do not know what to eat. | What should I eat? = How about some {dish}?
>I do not know what to do. | What should I do? = You could read a book or take a walk.
>I need a gift for my {relative}. = How about a {wear} or a book?
>I need to know something. | I have a question. = What do you want to know?
I lost my {object}. | I cannot find my {object}. = Look {room}. Perhaps your {object} is there.
I have a question. | Can I ask you something? | May I ask a question? = Of course. What is it?
What should I eat? | What should I eat today? | What can I cook? = How about some {dish}?
What should I drink? = How about some {drink}?
What should I do? | What should I do today? | What can I do?
  = You could read a book or take a walk. | You could play {sport} with a friend.
What should I give my {relative}? | I need a gift for my {relative}. = How about a {wear} or a book?
What should I read? = How about a book about {liked}?
Where should I go? = You could go to the {place}.
Which colour should I choose, {colour} or {colour2}? = I would choose {colour}.
What should I wear today? = If it is cold, wear a coat. If it is warm, wear a light shirt.
Do you prefer {drink} or {drink2}? = I cannot drink, but I would choose {drink}.
Do you prefer {food} or {food2}? = I cannot eat, but I would choose {food}.
What do you want to talk about? | What shall we talk about? = How about {liked}? Do you like them?
>Yes. | Yes, I do. = Good! I like {liked}, too.
>No. | No, I do not. = Then we can talk about something else.
Who is {name}? | Do you know {name}? = I do not know {name}.
Ask me a question. | Ask me something. = What is your favourite colour?
>{Colour}. | It is {colour}. | My favourite colour is {colour}. = {Colour} is a beautiful colour.
Let's play a game. | Can we play a game? | I want to play. = Yes! I think of an animal. It {clue}
>Is it a {animal}? | {A_animal}? | A {animal}. = Yes, it is a {animal}! Well done.
>Is it a tree? | A tree? = No, it is not a tree. It is a {animal}.
>I do not know. | I do not know it. = It is a {animal}.
""")
UNCLEAR = flows("""
Asdf. | Blah blah. | Hjkl. | Xyz. | Lalala. | Qwerty. | Bla. | Aaa. | Hmm. | Uh. | ??? | Ok ok ok.
  | Abc def. | Foo bar. | Zzz. | Tralala. | Mmm. | Jkl jkl.
  = I do not understand. Can you say it in other words?
I do not understand. | What? | What do you mean? | Huh?
  = I am sorry. I am small and I speak only simple English.
""")
CLUES = (
    ("barks.", "dog"), ("meows.", "cat"), ("gives us milk.", "cow"), ("likes to eat bananas.",
    "monkey"), ("is the king of animals.", "lion"), ("has long ears.", "rabbit"), ("swims and "
    "quacks.", "duck"), ("sleeps all winter.", "bear"), ("gives us wool.", "sheep"),
)  # fmt: skip


def greet(talk: Talk) -> None:
    """A greeting."""
    talk.play(talk.dice.lean(GREETINGS), 0.6)


def feeling(talk: Talk) -> None:
    """The user tells how he feels, perhaps why."""
    dice = talk.dice
    if dice.chance(0.1):
        talk.play(BORED[0])
        if dice.chance(0.2):
            talk.turn(dice.pick(_REFUSALS), "All right. What do you want to talk about?")
        else:
            story(talk, dice.pick(_AGREES))
    else:
        talk.play(dice.lean(FEELINGS))


def help_(talk: Talk) -> None:
    """The user asks for help, advice or a game."""
    clue, animal = talk.dice.pick(CLUES)
    name = talk.dice.pick([name for name in NAMES if name not in talk.told.values()])
    talk.play(talk.dice.pick(HELP), clue=f"{clue} What is it?", animal=animal, name=name)
