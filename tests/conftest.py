"""What the whole suite starts from."""

import signal

# nohup and shells' background jobs ignore these, in every process started here, too; tests send
# them.
for _name, _action in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)
