"""sideplug: a frozen LLM in the cloud, a person's side plugin on the device.

Importing this package does no work; each room (`contract`, `cloud`, `device`, `learn`) is imported by whoever needs it.
"""

__version__ = "0.1.0"
