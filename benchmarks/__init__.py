"""What i3lm's figures come from; see README.md."""

import os

WITHOUT_TORCH = "I3LM_BENCH_WITHOUT_TORCH"  # set for children that train as the command does

if os.environ.get(WITHOUT_TORCH):
    from i3lm.bare.modules import install

    install()
else:
    from i3lm.lean_torch import put_off_unused

    put_off_unused()  # as the command does; a peer that needs all of torch gets it
