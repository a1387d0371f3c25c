"""A chat template of a Thinking checkpoint."""

import json
from pathlib import Path

THINKING = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
    "{%- if m.content is string -%}"
    "{%- if m.role == 'assistant' -%}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else -%}{{ m.content }}{%- endif -%}"
    "{%- else -%}{%- for part in m.content -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{%- endfor -%}{%- endif -%}<|im_end|>\n{% endfor -%}"
    "{{ '<|im_start|>assistant\n<think>\n' if add_generation_prompt else '' }}"
)
"""Like the published template, reduced: opens the reasoning, drops that of earlier answers."""


def make_thinking(checkpoint: Path) -> Path:
    """Give a checkpoint folder the template of a Thinking checkpoint."""
    for name in ("tokenizer_config.json", "chat_template.json"):
        config = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps(config | {"chat_template": THINKING}))
    return checkpoint
