"""What the whole suite starts from."""

import signal

# Under nohup the signal is ignored, in every process started here, too; tests send it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
