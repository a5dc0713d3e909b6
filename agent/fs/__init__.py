"""Programs for questions to file systems that may never answer.

Each module here is run in a child process, ``python -I -S``, and imports the standard library only, so that it starts
in 10 to 50 milliseconds. A call that hangs is left behind with its process; the agent can always exit.
"""
