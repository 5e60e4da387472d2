"""Chat templates for tests, in the shapes that models with tools have; and a way to give one to a model's folder."""

from __future__ import annotations

import json
from pathlib import Path

_LISTED = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
_TOOLS = f"{{% if tools %}}<|im_start|>system\nTools: {_LISTED}<|im_end|>\n{{% endif %}}"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def _of(call: str, before: str = _TOOLS) -> str:
    """A template that writes each call of a message as `call`."""
    return (
        f"{before}{{% for message in messages %}}<|im_start|>{{{{ message.role }}}}\n{{{{ message.content }}}}"
        f"{{% if message.tool_calls %}}{call}{{% endif %}}<|im_end|>\n{{% endfor %}}{_ASK}"
    )


_EACH = "{% for call in message.tool_calls %}"
_ONE = '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
TAGGED = _of(f"{_EACH}<tool_call>\n{_ONE}\n</tool_call>{{% endfor %}}")
UNMARKED = _of(f"{_EACH}{_ONE.replace('arguments', 'parameters', 1)}{{% endfor %}}")
LISTED = _of(f"CALLS [{_EACH}{_ONE}{{% endfor %}}]")
OTHERWISE = _of(f"{_EACH}<call={{{{ call.function.name }}}}>{{% endfor %}}")
PLAIN = _of("", "")


def use_template(folder: Path, template: str) -> Path:
    """The folder, whose model has this chat template now."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return folder
