"""For every suite: Ctrl-C works in the commands that tests start, also where a shell runs the tests in the background.

Such a shell makes its programs ignore SIGINT, and they hand that down to theirs.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
