"""Where the frozen LLM runs. Knows no person: no plugin, no training. Imports only `sideplug.contract`."""
