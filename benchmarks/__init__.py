"""What i3lm's figures come from; see README.md."""

from i3lm.lean_torch import put_off_unused

put_off_unused()  # as the command does; a peer that needs all of torch gets it
