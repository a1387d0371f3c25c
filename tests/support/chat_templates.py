"""Chat templates like the published ones, reduced to what they do about reasoning."""

import json
from pathlib import Path

_TURNS = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content is string -%}"
    "{%- if m.role == 'assistant' -%}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else -%}{{ m.content }}{%- endif -%}"
    "{%- else -%}{%- for part in m.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- else -%}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
)
"""Earlier answers without their reasoning, and the beginning of the next one."""

_OPEN, _CLOSED = "{{ '<think>\n' }}", "{{ '<think>\n\n</think>\n\n' }}"
_IS_OFF = "{%- if enable_thinking is defined and enable_thinking is false -%}"
_IS_ON = "{%- if enable_thinking is defined and enable_thinking is true -%}"

THINKING = _TURNS + _OPEN + "{%- endif -%}"
"""Opens the reasoning, and reads no switch: a checkpoint that only reasons."""

SILENT = _TURNS + "{%- endif -%}"
"""Knows nothing of reasoning: an Instruct checkpoint."""

ON_BY_DEFAULT = _TURNS + _IS_OFF + _CLOSED + "{%- else -%}" + _OPEN + "{%- endif -%}{%- endif -%}"
"""Opens the reasoning, unless the switch is off; then there is an empty block."""

OFF_BY_DEFAULT = _TURNS + _IS_ON + _OPEN + "{%- else -%}" + _CLOSED + "{%- endif -%}{%- endif -%}"
"""An empty block, unless the switch is on."""

MODEL_OPENS = _TURNS + _IS_OFF + _CLOSED + "{%- endif -%}{%- endif -%}"
"""An empty block if the switch is off; else nothing: the model opens its reasoning itself."""

TEMPLATES = {
    "thinking": THINKING,
    "silent": SILENT,
    "on by default": ON_BY_DEFAULT,
    "off by default": OFF_BY_DEFAULT,
    "model opens": MODEL_OPENS,
}


def with_template(checkpoint: Path, template: str) -> Path:
    """Give a checkpoint folder another chat template, in each file that has one."""
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = checkpoint / name
        if file.exists():
            config = json.loads(file.read_text())
            file.write_text(json.dumps(config | {"chat_template": template}))
    if (checkpoint / "chat_template.jinja").exists():
        (checkpoint / "chat_template.jinja").write_text(template)
    return checkpoint


def make_thinking(checkpoint: Path) -> Path:
    """Give a checkpoint folder the template of a Thinking checkpoint."""
    return with_template(checkpoint, THINKING)
