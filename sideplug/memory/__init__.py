"""What a person told: entries that are found by the words of a prompt, and said as they were told.

It is a kind of plugin parts (part), which is asked before a reply begins. It may import plugins and contract.
"""

from sideplug.memory.part import MemoryKind
from sideplug.plugins import register

register(MemoryKind())
