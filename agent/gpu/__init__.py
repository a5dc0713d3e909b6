"""The GPUs: a probe process that alone calls NVML, and the agent's side of it.

A driver call that hangs cannot be interrupted, and a process inside one cannot end. So nobody but the probe imports
``pynvml``, the agent never waits for it longer than a deadline, and nothing here is ever killed.
"""
