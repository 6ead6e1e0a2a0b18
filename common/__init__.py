"""What the processes of Headrace agree on, and nothing else.

Wire messages, key names, Lua scripts with their typed callers, settings, errors and logging.
"""
