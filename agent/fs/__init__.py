"""Programs for questions to file systems that may never answer.

Each module here is run by path in a child process, ``python -I -S FILE``, and imports the standard library only, so
that it starts in 15 to 50 milliseconds. A call that hangs is left behind with its process; the agent can always exit.
"""
