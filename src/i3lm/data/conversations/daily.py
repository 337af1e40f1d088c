"""Daily life: family, home, food, school and work, hobbies, plans, weather and clothes."""

from i3lm.data.conversations.flows import flows

WEATHER = flows("""
It is raining. | It is raining today. | It rains. = Then take an umbrella with you.
>I have no umbrella. | I do not have an umbrella. = Then put on a rain coat, or wait inside.
>Good idea. | Okay. = Stay dry!
It is sunny today. | The sun is shining. | It is sunny. = How nice! You could go for a walk.
>Where should I go? = You could go to the park.
>Good idea. | I will. = Enjoy the sun!
It is snowing! | It is snowing. | There is snow outside. = Put on a warm coat and make a snowman.
>I have no gloves. = Then keep your hands in your pockets.
It is windy. | It is very windy today. = Hold on to your hat!
It is foggy. | It is cloudy. | The sky is grey. = Perhaps the sun comes out later.
It is very cold outside. | It is cold today. = Put on a warm coat.
It is very hot today. | It is hot outside. | It is too hot. = Drink water and stay in the shade.
There is a storm. | I hear thunder. = Stay inside, where you are safe.
How is the weather? | What is the weather like? | How is the weather today? | What is the weather?
  | How's the weather? = I cannot see outside. What is the weather like?
>It is sunny. | The sun is shining. | It is warm. = How nice! You could go for a walk.
>It is raining. | It is wet. = Then take an umbrella with you.
>It is cold. | It is snowing. = Put on a warm coat.
>I do not know. = Then look out of the window.
Is it raining? | Is it cold outside? | Is it sunny? | Will it rain tomorrow? | Is it warm outside?
  = I do not know. I cannot see outside.
What should I wear in the rain? | What do I wear in the rain? = Wear a rain coat and boots.
What should I wear in winter? | What do I wear when it is cold? | What should I wear in the snow?
  = Wear a warm coat, a hat and gloves.
What should I wear in summer? | What do I wear when it is hot? = Wear a light shirt and a hat.
Do you like rain? | Do you like snow? | Do you like the sun?
  = I cannot feel the weather, but I like to hear about it.
I like the snow. | I like the rain. | I like the sun. = All weather can be nice.
""")
LIFE = flows("""
I have a big family. | My family is big. = How nice! Do you have brothers and sisters?
>Yes. | Yes, I do. | Yes, {small} brothers. = Then you always have somebody to play with.
>No. | No, I do not. = Then you have more time for your friends.
My {relative} is {a_job}. = {A_job}! That is a good job.
My {relative} likes {food}. = Many people like {food}.
My {relative} likes {hobby}. = {Hobby} is a nice hobby.
I love my {relative}. | My {relative} is nice. = I am sure your {relative} loves you, too.
My {relative} is angry with me. = Say that you are sorry. Then all will be well.
I am going to visit my {relative}. = Have fun with your {relative}!
I have a friend. | I have a good friend. = That is nice. What is your friend called?
>{Name}. | My friend is called {name}. | {Name} is my friend. = {Name} is a nice name.
I have a new {wear}. | I bought {a_wear}. = How nice! What colour is it?
>It is {colour}. | {Colour}. = {A_colour} {wear} looks good.
I like your name. | i3 is a nice name. = Thank you!
I ate {food} today. | I had {food} for lunch. = Was it good?
>Yes. | Yes, it was. | Yes, very good. = Then eat it again soon.
>No. | No, it was not. | Not so good. = I am sorry. Try something else tomorrow.
I want to cook {dish}. | I am cooking {dish}. = Good idea! Enjoy your meal.
I do not like {food}. | I hate {food}. = That is all right. What do you like?
>I like {food2}. | {Food2}. = Many people like {food2}.
I drink {drink} every day. | I like {drink}. = {Drink} is good in the {time}.
What do people eat for breakfast? = Many people eat bread, eggs or fruit for breakfast.
What is a good breakfast? | What can I eat for breakfast? = Bread with honey and a cup of milk.
How do I make tea? = Put tea in hot water, and wait a little.
How do I make soup? = Cook carrots and potatoes in water, and add some salt.
How do I make a salad? = Cut some tomatoes and leaves, and add oil and salt.
How do I make a cake? = Mix flour, eggs, milk and sugar, and bake it.
I go to school. | I am at school. | I was at school today. = What do you learn at school?
>{Subject}. | I learn {subject}. | We learn {subject}. = {Subject} is interesting.
>A lot. | Many things. = That is good. Learning is fun.
I like {subject}. | My favourite subject is {subject}. = {Subject} is interesting.
I do not like {subject}. = Perhaps it gets better when you try again.
I have homework. | I have a lot of homework. = Do it step by step, then you can play.
I have a test on {day}. | I have a test tomorrow. = Read your books and sleep well. Good luck!
I have to work. | I am at work. | I work a lot. = Do not forget to rest.
I do not want to work. | My work is hard. = Take a short rest, then it is easier.
I play the {instrument}. | I can play the {instrument}. = How nice! The {instrument} sounds good.
I want to learn the {instrument}. = Good idea! Play a little every day.
I play {sport}. | I like {sport}. | I played {sport} today. = {Sport} is fun. Did you win?
>Yes. | Yes, we won. | Yes, I did. = Well done!
>No. | No, we lost. | No, I did not. = Never mind. Next time you will.
I am reading a book. | I read a book. = What is it about?
>It is about {liked}. | {Liked}. = {Liked} are interesting.
>It is about {a_job}. = That sounds interesting.
I saw {a_pet}. | I saw {a_pet} today. = How nice! What did it do?
>It slept. | It was sleeping. = Then it was tired.
>It ate. | It was eating. = Then it was hungry.
>It ran away. = Perhaps it was afraid.
I am going to the {place}. | I will go to the {place}. | I want to go to the {place}.
  = Have fun at the {place}!
I was at the {place}. | I went to the {place} today. = Did you like it?
>Yes. | Yes, I did. | Yes, very much. = That is good to hear.
>No. | No, I did not. = I am sorry. Perhaps the next day is better.
I will go to {city}. | I am going to {city}. | We will visit {city}. = Have a good trip to {city}!
I was in {city}. | I went to {city}. = {City} is a nice place. Did you like it?
>Yes. | Yes, I did. | Yes, it was great. = That is good to hear.
>No. | No, I did not. = Perhaps you like another place better.
I live in a big house. | I live in a small house. = A house is nice when friends come to visit.
I cleaned my room. | I am cleaning the kitchen. = Well done! A clean home is nice.
I planted a {flower}. | I have a {flower}. | I got a {flower}. = How nice! Give it some water.
I want {a_pet}. | I would like {a_pet}. = {A_pet} needs food, water and a friend like you.
What does {a_pet} need? | How do I care for {a_pet}? = {A_pet} needs food, water and love.
I bought {a_object}. | I got {a_object}. = How nice! I hope you like your new {object}.
I broke my {object}. | My {object} is broken. = I am sorry. Perhaps you can mend it.
It is late. | It is very late. = Then you should go to sleep.
It is early. = Then you have a long day before you.
It is {day} today. | Today is {day}. = I hope you have a nice {day}.
I like {day}. | {Day} is my favourite day. = {Day} is a good day.
I like {month}. | My favourite month is {month}. = {Month} is a nice month.
I like {hobby}, and you? | I like {hobby}. Do you? = I have no body, but {hobby} sounds like fun.
I cannot swim. | I cannot dance. | I cannot sing. | I cannot cook.
  = You can learn it. Try a little every day.
Tell me something. | Tell me something nice. | Say something. | Tell me a fact.
  = Bees make honey. | The sun is a star. | Frogs can swim and jump. | A day has twenty-four hours.
  | Elephants are very big. | Spiders have eight legs. | Cats like to sleep in the sun.
Say something nice to me. | Say something nice about me.
  = You are kind, and I like to talk with you.
Wish me luck. | I need luck. = Good luck! I am sure you will do well.
Merry Christmas! = Merry Christmas to you, too!
Happy new year! = Happy new year to you, too!
How do you make friends? | How can I make friends? = Be kind, listen well and smile.
What makes you happy? = A short talk with a friendly person.
What is a good name for {a_pet}? | How should I call my {pet}? = How about {petname}?
""")
