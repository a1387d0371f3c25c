"""Programs that a user would write instead: loops over transformers, run by ``bench_peers.py``.

    python benchmarks/peers.py one-by-one|batched|ray-data-llm REQUEST.json

A contender loads the model, answers about the files of the request, and prints the answers as JSON.
``ray-data-llm`` needs a Python with vLLM.

qwen-vl-utils needs torchvision, which does not load beside a CPU build of torch, so its steps are
repeated here: evenly spaced frames at full size by torchcodec, and torch's bicubic resize with
antialias.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]
BATCH_PROMPTS = 16
FACTOR = 32


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Sides in multiples of 32, with an area of min_pixels to max_pixels, as in the reference."""
    h, w = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (math.floor(side / shrink / FACTOR) * FACTOR for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return h, w


class Loop:
    """transformers' processor and generate, as their documentation shows."""

    def __init__(self, request: dict[str, Any], batch_prompts: int) -> None:
        import torch
        from transformers import (
            AutoModelForImageTextToText,
            AutoTokenizer,
            Qwen3VLProcessor,
        )
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        class Processor(Qwen3VLProcessor):  # type: ignore[misc]
            """Works without torchvision, because frames are RGB and resized already."""

            def check_argument_for_proper_class(self, name: str, argument: Any) -> None:
                pass

        source = request["model"]
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        self.processor = Processor(
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(source),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor.from_pretrained(source),
            chat_template=tokenizer.chat_template,
        )
        self.torch = torch
        self.request, self.batch_prompts = request, batch_prompts
        if batch_prompts:
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
            self.model = model.eval()

    def answer(self, paths: list[str]) -> list[dict[str, list[Any]]]:
        """Texts and lengths of each file's answers, by question."""
        done: list[dict[str, list[Any]]] = []
        files = max(1, self.batch_prompts // len(self.request["prompts"]["image"]))
        if self.batch_prompts == 1:
            files = 1
        for start in range(0, len(paths), files):
            media = [self.load(path) for path in paths[start : start + files]]
            prompts = [
                (seen, prompt) for seen in media for prompt in self.request["prompts"][seen[0]]
            ]
            answers: list[Any] = []
            for k in range(0, len(prompts), self.batch_prompts):
                answers += self.generate(prompts[k : k + self.batch_prompts])
            each = len(answers) // len(media)
            for k in range(len(media)):
                texts, lengths = zip(*answers[k * each : (k + 1) * each], strict=True)
                done.append({"texts": list(texts), "lengths": list(lengths)})
        return done

    def load(self, path: str) -> tuple[str, Any, Any]:
        """An image, or a video's frames and metadata."""
        budget = self.request["budget"]
        if path.endswith(".jpg"):
            from PIL import Image

            image = Image.open(path).convert("RGB")
            min_pixels, max_pixels = (tokens * FACTOR**2 for tokens in budget["image_tokens"])
            height, width = smart_resize(image.height, image.width, min_pixels, max_pixels)
            return "image", image.resize((width, height), Image.Resampling.BICUBIC), None
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(path)
        fps, total = float(decoder.metadata.average_fps), len(decoder)
        count = min(max(2 * round(total / fps * self.request["fps"] / 2), 4), total)
        indices = self.torch.linspace(0, total - 1, count).round().long().tolist()
        frames = decoder.get_frames_at(indices=indices).data
        min_pixels, each = (tokens * FACTOR**2 for tokens in budget["frame_tokens"])
        share = budget["unit_tokens"] * FACTOR**2 / count * 2
        max_pixels = int(max(min(each, share), int(1.05 * min_pixels)))
        size = smart_resize(frames.shape[2], frames.shape[3], min_pixels, max_pixels)
        frames = self.torch.nn.functional.interpolate(
            frames.float(), size=size, mode="bicubic", antialias=True
        )
        frames = frames.round().clamp(0, 255).to(self.torch.uint8)
        metadata = {"fps": fps, "frames_indices": indices, "total_num_frames": total}
        return "video", frames, metadata

    def prompt(self, kind: str, text: str) -> str:
        """The text of a conversation about an image or a video."""
        content = [{"type": kind}, {"type": "text", "text": text}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return prompt

    def generate(self, prompts: list[tuple[Any, str]]) -> list[tuple[str, int]]:
        """Text and length of the answer to each prompt about its image or video."""
        texts = [self.prompt(kind, prompt) for (kind, _, _), prompt in prompts]
        images = [seen for (kind, seen, _), _ in prompts if kind == "image"]
        videos = [(seen, metadata) for (kind, seen, metadata), _ in prompts if kind == "video"]
        inputs = self.processor(
            text=texts,
            images=images or None,
            videos=[frames for frames, _ in videos] or None,
            video_metadata=[metadata for _, metadata in videos] or None,
            do_resize=False,
            padding=True,
            return_tensors="pt",
            videos_kwargs={
                "do_sample_frames": False,
                "do_convert_rgb": False,
                "do_rescale": False,
                "do_normalize": False,
                "cap_pixels_per_frame": False,
            },
        )
        if videos:  # torchvision's step
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].float() / 127.5 - 1
        with self.torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=self.request["max_new_tokens"], do_sample=False
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        padding = self.processor.tokenizer.pad_token_id
        lengths = [int((row != padding).sum()) for row in new]
        answers = self.processor.batch_decode(new, skip_special_tokens=True)
        return list(zip(answers, lengths, strict=True))


class RayDataLLM:
    """Ray Data's LLM module with vLLM: a row for each prompt, media loaded in its preprocessing."""

    def __init__(self, request: dict[str, Any]) -> None:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        self.prompts = request["prompts"]
        sampling = {"temperature": 0.0, "max_tokens": request["max_new_tokens"]}
        held: list[Any] = []  # each worker loads a processor once

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            from benchmarks.peers import Loop

            if not held:
                held.append(Loop(request, 0))
            kind, seen, metadata = held[0].load(row["path"])
            if kind == "video":
                frames = seen.permute(0, 2, 3, 1).numpy()
                seen = (frames, metadata | {"do_sample_frames": False, "video_backend": "own"})
            return {
                "prompt": held[0].prompt(kind, row["text"]),
                "multimodal_data": {kind: [seen]},
                "multimodal_uuids": {kind: [row["path"]]},
                "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
                "sampling_params": sampling,
            }

        config = vLLMEngineProcessorConfig(
            model_source=request["model"],
            engine_kwargs={
                "dtype": "float32",
                "max_model_len": 4096,
                "max_num_seqs": 32,
                "max_num_batched_tokens": 1024,
                "enforce_eager": True,
                "skip_mm_profiling": True,
                "enable_prefix_caching": True,
                "limit_mm_per_prompt": {"image": 1, "video": 1},
            },
            runtime_env={
                "env_vars": {
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(ROOT),
                },
            },
            placement_group_config={"bundles": [{"CPU": 1}]},
            log_engine_metrics=False,
            concurrency=1,
            batch_size=BATCH_PROMPTS,
            prepare_multimodal_stage=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        self.processor = build_processor(
            config,
            preprocess=preprocess,
            postprocess=lambda row: {
                "path": row["path"],
                "k": row["k"],
                "text": row["generated_text"],
                "length": row["num_generated_tokens"],
            },
        )

    def answer(self, paths: list[str]) -> list[dict[str, list[Any]]]:
        """Texts and lengths of each file's answers, by question."""
        import ray

        rows = [
            {"path": path, "k": k, "text": text}
            for path in paths
            for k, text in enumerate(self.prompts["image" if path.endswith(".jpg") else "video"])
        ]
        found: dict[str, dict[int, Any]] = {path: {} for path in paths}
        data = self.processor(ray.data.from_items(rows, override_num_blocks=len(rows) // 4))
        for row in data.iter_rows():
            found[row["path"]][row["k"]] = row["text"], row["length"]
        return [
            {
                "texts": [found[path][k][0] for k in sorted(found[path])],
                "lengths": [found[path][k][1] for k in sorted(found[path])],
            }
            for path in paths
        ]


def contend(name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one contender; returns its answers, by file."""
    if name == "ray-data-llm":
        contender: Any = RayDataLLM(request)
    else:
        contender = Loop(request, 1 if name == "one-by-one" else BATCH_PROMPTS)
    answers: list[dict[str, Any]] = contender.answer(request["files"])
    return answers


if __name__ == "__main__":
    print(json.dumps(contend(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
