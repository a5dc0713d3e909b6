"""The hands: the only code that changes the host, in a process of its own with a closed list of typed verbs.

Standard library and base modules only. ``policy`` says what may be touched, ``tree`` touches it through directory
descriptors, ``verbs`` is what can be asked, ``server`` answers, ``client`` asks.
"""
