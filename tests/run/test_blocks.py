"""Pieces of work: every unit once, and all engines end together."""

import dataclasses
import heapq

import numpy as np
import pyarrow as pa
import pytest

from jobs.cost.rates import FEATURES, Rates, Work, features, fit
from jobs.plan.runs import open_run
from pipeline.engines.largest import LargestMedia, largest_media
from pipeline.stages.blocks import (
    bytes_of_tokens,
    calls_within_memory,
    frame_bytes,
    in_blocks,
    limit_pools,
)
from pipeline.stages.commit import COMMITTED
from pipeline.stages.generate import Generate
from pipeline.stages.pools import Pools
from pipeline.storage.storage import Storage
from schemas.job.job import check_job
from schemas.tables.columns import to_table
from schemas.tables.media import Media, Part, Sampling
from schemas.tables.unit import UNIT, Prompt, Unit, UnitStatus


def pools(replicas: int = 1, decoders: int = 1) -> Pools:
    return Pools(
        decoders=decoders,
        cpus_per_decoder=1,
        replicas=replicas,
        cpus_per_replica=1,
        gpus_per_replica=0,
    )


def sampling(tokens: int, side: int = 32, frames: int = 2) -> Sampling:
    return Sampling(
        num_frames=frames,
        resized_height=side,
        resized_width=side,
        grid_thw=(1, 2, 2),
        num_vision_tokens=tokens,
    )


def planned(costs, side: int = 32) -> pa.Table:
    media = Media(media_type="video", width=64, height=64)
    return to_table(
        [
            Unit(
                unit_id=f"u{k}",
                media_id=f"u{k}",
                uri="a.mp4",
                media=media,
                sampling=sampling(int(cost), side),
                prompts=(
                    Prompt(task="caption", num_prompt_tokens=int(cost) + 20, num_own_tokens=12),
                ),
                num_shared_tokens=int(cost) + 8,
                predicted_cost=float(cost),
            )
            for k, cost in enumerate(costs)
        ],
        UNIT,
    )


def cut(units: pa.Table, pools: Pools, max_batch_tokens: int = 1) -> list[pa.Table]:
    return in_blocks(units, units["predicted_cost"].to_numpy(), pools, max_batch_tokens)


def block_costs(blocks: list[pa.Table]) -> list[float]:
    return [sum(block["predicted_cost"].to_pylist()) for block in blocks]


def test_every_unit_is_in_one_block_the_most_expensive_first():
    costs = np.random.default_rng(1).permutation(
        np.repeat([900.0, 100.0, 10.0, 0.0], [1, 90, 400, 99])
    )
    blocks = cut(planned(costs), pools())
    together = pa.concat_tables(blocks)
    assert together["predicted_cost"].to_pylist() == sorted(costs, reverse=True)
    assert len(set(together["unit_id"].to_pylist())) == len(costs)
    assert blocks[0].num_rows == 1  # over a 32nd of all, and alone
    assert max(block.num_rows for block in blocks) <= 256


def test_blocks_cost_about_the_same_and_less_towards_the_end():
    costs = block_costs(cut(planned([10.0] * 4000), pools(replicas=4)))
    usual = 40_000 / (32 * 4)
    assert all(usual - 10 <= cost <= usual for cost in costs[:100])
    assert costs[-1] == 10.0
    assert costs == sorted(costs, reverse=True)


def test_at_the_end_three_takers_of_one_replica_have_pieces_as_three_replicas_would():
    units = planned([10.0] * 4000)
    costs = units["predicted_cost"].to_numpy()
    left, blocks = 40_000.0, in_blocks(units, costs, pools(replicas=4), 1, calls_at_once=3)
    for cost in block_costs(blocks):
        assert cost <= max(10.0, left / (3 * 4 * 3))
        left -= cost
    assert left == 0


def test_a_block_has_two_batches_tokens_and_one_at_the_end():
    costs = block_costs(cut(planned([10.0] * 4000), pools(replicas=4), max_batch_tokens=1000))
    assert costs[0] == 2000
    assert costs[-2] == 1000
    assert {cost for cost in costs if cost < 1000} <= {costs[-1]}


def test_there_is_work_for_every_actor():
    blocks = cut(planned([10.0] * 40), pools(replicas=5, decoders=10), max_batch_tokens=1000)
    assert len(blocks) == 20
    fitted = limit_pools(pools(replicas=50, decoders=10), len(blocks))
    assert (fitted.replicas, fitted.decoders) == (20, 10)


def test_blocks_are_bounded_by_the_bytes_of_their_frames():
    units = planned([1.0] * 10, side=8192)  # 400 MB each
    assert [block.num_rows for block in cut(units, pools())] == [1] * 10


def test_blocks_of_an_engine_that_works_on_several_are_small():
    """A clip of 60 s in full size is one; a block of three would wait for the slowest of them."""
    clips = planned([26_000.0] * 40, side=4992)  # 150 MB each
    costs = clips["predicted_cost"].to_numpy()
    blocks = in_blocks(clips, costs, pools(), 16_384, Generate.calls_at_once(of_engine("vllm")))
    assert [block.num_rows for block in blocks] == [1] * 40
    images = planned([1300.0] * 4000, side=1120)  # 7.5 MB each
    costs = images["predicted_cost"].to_numpy()
    for engine, limit in (("vllm", 1 << 27), ("transformers", 1 << 29)):
        calls = Generate.calls_at_once(of_engine(engine))
        sizes = [
            frame_bytes(block).sum() for block in in_blocks(images, costs, pools(), 1 << 20, calls)
        ]
        assert limit / 2 < max(sizes) <= limit


@pytest.mark.parametrize(
    ("side", "calls"),
    [
        (64, 16),
        (4729, 16),  # 134 MB each, 2.1 GB
        (4992, 14),  # 150 MB, a clip of 60 s in full size
        (8192, 5),
        (15_052, 2),  # 1.36 GB, a window of 229,376 tokens
        (40_000, 2),  # the next block's frames are there when one ends
    ],
)
def test_large_blocks_are_fewer_at_a_time(side, calls):
    blocks = [planned([10.0] * 2), planned([10.0], side=side)]
    largest = max(frame_bytes(block).sum() for block in blocks)
    assert calls_within_memory(16, largest) == calls
    assert calls_within_memory(1, largest) == 1
    assert calls_within_memory(3, largest) == min(3, calls)
    assert calls_within_memory(16, 0.0) == 16


def test_the_bytes_of_vision_tokens_are_those_of_their_frames():
    """A window of 60 frames of 1920 x 1088: 34 x 60 tokens for each pair."""
    assert bytes_of_tokens(30 * 34 * 60) == 60 * 1920 * 1088 * 3


def of_engine(engine: str):
    return check_job({"input": {"scan": "x"}, "output": "y", "model": {"engine": engine}}, "test")


def test_the_largest_image_and_video_of_a_plan_are_also_those_of_conversations():
    image = Media(media_type="image", width=64, height=64)
    video = Media(media_type="video", width=64, height=64)
    unread = Unit(unit_id="x", media_id="x", uri="x", status=UnitStatus.FAILED)
    assert largest_media([to_table([unread], UNIT)]) == LargestMedia()
    clips = planned([300.0, 700.0])
    assert largest_media([clips, to_table([unread], UNIT)]) == LargestMedia(video_tokens=700)
    parts = tuple(
        Part(uri="a", media=media, sampling=sampling(tokens))
        for media, tokens in ((image, 40), (video, 900), (image, 50))
    )
    talk = Unit(unit_id="t", media_id="t", uri="", messages="[]", parts=parts)
    alone = Unit(unit_id="i", media_id="i", uri="b", media=image, sampling=sampling(45))
    blocks = [clips, to_table([talk], UNIT), to_table([alone], UNIT)]
    assert largest_media(blocks) == LargestMedia(image_tokens=50, video_tokens=900)


def test_frames_of_a_conversation_are_those_of_its_parts():
    media = Media(media_type="image", width=64, height=64)
    parts = tuple(
        Part(uri="a.png", media=media, sampling=sampling(4, side, 1)) for side in (32, 64)
    )
    talk = Unit(unit_id="t", media_id="t", uri="", messages="[]", parts=parts)
    units = pa.concat_tables([planned([1.0]), to_table([talk], UNIT), planned([1.0])])
    clip = 3 * 2 * 32 * 32
    assert frame_bytes(units).tolist() == [clip, 3 * (32 * 32 + 64 * 64), clip]
    talk_has_no_prompt = [8, -8, 0]
    found = features(units, {"caption": 30.0}).tolist()
    assert found == [[1, 20, 30], talk_has_no_prompt, [1, 20, 30]]


def makespan(seconds: list[float], replicas: int) -> float:
    """When the last replica ends, by Ray Data's rule: one block at work and one waiting in each."""
    ends = [(0.0, k) for k in range(replicas)]
    heapq.heapify(ends)
    queue = [[] for _ in range(replicas)]
    todo = list(reversed(seconds))
    for _ in range(2):
        for k in range(replicas):
            if todo:
                queue[k].append(todo.pop())
    last = 0.0
    while ends:
        now, k = heapq.heappop(ends)
        last = max(last, now)
        if not queue[k]:
            continue
        heapq.heappush(ends, (now + queue[k].pop(0), k))
        if todo:
            queue[k].append(todo.pop())
    return last


@pytest.mark.parametrize("seed", range(3))
def test_64_replicas_on_a_skewed_archive_end_within_a_twentieth_of_the_bound(seed: int):
    costs = np.random.default_rng(seed).lognormal(6, 1.2, 20_000).clip(30, 50_000)
    blocks = cut(planned(costs), pools(replicas=64, decoders=64))
    bound = max(costs.sum() / 64, costs.max())
    assert makespan(block_costs(blocks), 64) < 1.05 * bound
    # In the order of the manifest and as many rows each, as Ray Data does by itself, it is not.
    rows = np.array_split(costs, len(blocks))
    assert makespan([float(block.sum()) for block in rows], 64) > 1.05 * bound


def test_costs_are_learnt_from_sums_of_files():
    rng = np.random.default_rng(0)
    truth = np.array([0.02, 0.005, 0.03])
    files = [rng.integers(1, 1000, 3).astype(float) for _ in range(12)]
    observed = [(sums, float(sums @ truth) * rng.uniform(0.99, 1.01)) for sums in files]
    assert fit(observed) == pytest.approx(truth, rel=0.2)
    assert fit(observed[:3]) is None
    assert fit([(sums, 0.0) for sums in files]) is None


def test_no_feature_gives_time_back():
    files = [np.array([k, 10.0 - k, 1.0]) for k in range(10)]
    weights = fit([(sums, float(sums[0])) for sums in files])
    assert (weights >= 0).all()
    assert [float(sums @ weights) for sums in files[1:]] == pytest.approx(range(1, 10), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_kinds_that_cannot_be_told_apart_share_a_rate(seed: int):
    """Text tokens that grow with vision tokens: noise would give one of them 0 s."""
    rng = np.random.default_rng(seed)
    truth = np.array([0.02, 0.02, 0.3])
    vision = rng.uniform(100, 1000, 12)
    text = vision * rng.uniform(0.098, 0.102, 12)
    files = np.stack([vision, text, rng.uniform(5, 50, 12)], axis=1)
    weights = fit([(sums, float(sums @ truth) * rng.uniform(0.97, 1.03)) for sums in files])
    assert (weights > 0).all()
    assert files @ weights == pytest.approx(files @ truth, rel=0.1)


def rows_of(units: pa.Table, seconds_per_token: float) -> pa.Table:
    found = [
        {
            "unit_id": unit["unit_id"],
            "status": "ok",
            "predicted_cost": unit["predicted_cost"],
            "num_vision_tokens": unit["sampling"]["num_vision_tokens"],
            "num_text_tokens": 20,
            "num_output_tokens": 9,
            "responses": [
                {
                    "task": "caption",
                    "num_prompt_tokens": unit["prompts"][0]["num_prompt_tokens"],
                    "num_output_tokens": 9,
                    "attempts": 1,
                    "status": "ok",
                }
            ],
            "engine_seconds": seconds_per_token * unit["sampling"]["num_vision_tokens"],
        }
        for unit in units.to_pylist()
    ]
    return pa.Table.from_pylist(found, schema=COMMITTED)


def test_a_run_learns_its_costs_and_the_next_one_begins_with_them():
    units = planned(range(100, 4100, 10))
    work = Work(units, None)
    assert work.total_cost == sum(range(100, 4100, 10))
    files = [rows_of(units.slice(at, 20), 0.01) for at in range(0, 400, 20)]
    learnt = []
    for file in files[:6]:
        work.count_done(file)
        learnt.append(work.update_rates())
    assert learnt == [False] * 5 + [True]
    assert set(work.rates.seconds_each) == set(FEATURES)
    assert work.rates.output_tokens == {"caption": 9}
    assert work.total_cost == pytest.approx(0.01 * sum(range(100, 4100, 10)), rel=0.02)
    assert work.done_cost == pytest.approx(0.01 * sum(range(100, 1300, 10)), rel=0.02)
    following = Work(units, work.rates)
    assert following.costs == pytest.approx(0.01 * np.arange(100, 4100, 10), rel=0.05, abs=0.1)


def test_a_new_run_begins_with_what_the_latest_run_of_its_model_learnt(tmp_path):
    job = check_job({"input": {"manifest": "m.jsonl"}, "output": str(tmp_path)}, "test")
    storage = Storage()
    small, large = {"model": {"weights": "a"}}, {"model": {"weights": "b"}}
    first, _ = open_run(job, "one manifest", small, storage)
    assert first.cost is None
    each = {"num_vision_tokens": 0.25, "num_text_tokens": 0.0, "num_output_tokens": 1.5}
    learnt = Rates(seconds_each=each, output_tokens={"caption": 40.0})
    done = dataclasses.replace(first, cost=learnt, starts=1, status="complete")
    done.save(job, storage)
    second, _ = open_run(job, "another manifest", small, storage)
    assert second.cost == dataclasses.replace(
        learnt, origin=f"measurements of the run {first.run_id}"
    )
    assert open_run(job, "another manifest", large, storage)[0].cost is None
    # Without counts it is not finished, whatever it says.
    unfinished = dataclasses.replace(done, status="running")
    assert open_run(job, "one manifest", small, storage)[0] == unfinished


@pytest.mark.parametrize(
    ("decoders", "cpus", "planners", "cpus_of_decoder", "cpus_of_planner"),
    [(1, 1.0, 1, 0.9, 0.1), (7, 0.5, 1, 0.45, 0.05), (16, 2.0, 3, 1.0, 1.0)],
)
def test_planners_find_a_place_wherever_decoders_do(
    monkeypatch, decoders, cpus, planners, cpus_of_decoder, cpus_of_planner
):
    """Ray takes whole CPUs above one."""
    monkeypatch.setattr("pipeline.stages.pools.on_nodes", lambda resource: None)
    before = dataclasses.replace(pools(), decoders=decoders, cpus_per_decoder=cpus)
    found = before.with_planners()
    assert (found.decoders, found.planners) == (decoders, planners)
    assert found.cpus_per_decoder == cpus_of_decoder
    assert found.planner_pool().num_cpus == cpus_of_planner
    used = found.decoders * found.cpus_per_decoder + found.planners * cpus_of_planner
    assert used <= decoders * cpus
