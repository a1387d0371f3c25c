"""The job file: what it accepts, and one clear line for each mistake, without its secrets."""

import logging
import pickle

import pytest

from schemas.errors import JobFileError
from schemas.job.job import Job, check_job, load_job
from schemas.job.task_spec import TASK_NAMES, TaskName

LEAST = {"input": {"scan": "clips/"}, "output": "out"}
SECRET = "hunter2-secret"


def mistakes(spec):
    """The lines after the first, of a job that has mistakes."""
    with pytest.raises(JobFileError) as error:
        check_job(spec, "job.yaml")
    first, *lines = str(error.value).splitlines()
    assert first == "job.yaml is not valid:"
    return [line.strip() for line in lines]


def job_file(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def own(name):
    return {"name": name, "task": "custom", "prompt": "?"}


def test_input_and_output_are_enough(tmp_path):
    job = load_job(job_file(tmp_path, "input: {scan: clips/}\noutput: out\n"))
    assert job == check_job(LEAST, "test")
    assert (job.name, job.sampling.fps, job.budget.unit_tokens) == ("annotate", 2.0, 24576)
    assert [question.task for question in job.questions()] == ["caption"]


def test_a_whole_job_file(tmp_path):
    text = """
name: nightly-captions
input: {manifest: s3://media/2026-11-22.parquet}
output: s3://annotations/archive
model:
    source: ./checkpoint
    max_model_len: 4096
sampling:
    # a section whose keys are all commented out
    segmentation:
    fps: 1
budget: {image_tokens: [4, 1024]}
generation: {max_new_tokens: 100}
tasks:
  - caption
  - objects: {labels: [person, car], max_new_tokens: 300}
  - ocr:
  - {name: events, prompt: What happens here}
resources:
storage_options:
    s3: {endpoint_url: "http://minio:9000"}
"""
    job = load_job(job_file(tmp_path, text))
    assert job.model.source == "./checkpoint"
    assert job.sampling.fps == 1.0
    assert job.sampling.segmentation.seconds == 60.0
    assert job.budget.image_tokens == (4, 1024)
    assert job.resources.replicas == "auto"
    assert job.storage_options["s3"]["endpoint_url"] == "http://minio:9000"
    assert [(q.task, q.labels, q.prompt, q.max_new_tokens) for q in job.questions()] == [
        ("caption", (), None, 100),
        ("objects", ("person", "car"), None, 300),
        ("ocr", (), None, 100),
        ("events", (), "What happens here", 100),
    ]


def test_questions_with_names_of_their_own(tmp_path):
    text = """
input: {scan: clips/}
output: out
tasks:
  - custom: {prompt: Is it sharp}
  - name: defects
    task: custom
    prompt: Which defects
    json_schema: {type: array, items: {type: string}}
  - season: {task: custom, prompt: Which season}
  - fields: {name: invoice, keys: [total]}
  - {task: fields, keys: [date]}
  - arrival: {task: moments, query: A train arrives}
"""
    job = load_job(job_file(tmp_path, text))
    assert [(q.name, q.task, q.prompt, q.keys, q.query) for q in job.questions()] == [
        ("custom", "custom", "Is it sharp", (), None),
        ("defects", "custom", "Which defects", (), None),
        ("season", "custom", "Which season", (), None),
        ("invoice", "fields", None, ("total",), None),
        ("fields", "fields", None, ("date",), None),
        ("arrival", "moments", None, (), "A train arrives"),
    ]
    assert check_job(job.model_dump(), "dumped") == job
    replaced = load_job(job_file(tmp_path, text), {"tasks": [own("look"), "ocr"]})
    assert [task.name for task in replaced.tasks] == ["look", "ocr"]


def test_task_names_are_one_list():
    assert TaskName.__args__ == TASK_NAMES


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sampling": {"fsp": 2}}, "sampling.fsp: unknown key, did you mean 'fps'?; see docs"),
        ({"fps": 2}, "fps: unknown key, did you mean 'sampling.fps'?; see docs"),
        ({"smapling": {}}, "smapling: unknown key, did you mean 'sampling'?; see docs"),
        ({"xyzzy": 1}, "xyzzy: unknown key; see docs/job-file.md for the known ones"),
        ({"tasks": [{"objects": {"lables": []}}]}, "tasks.0.lables: unknown key, did you mean"),
        ({"tasks": [{"objects": None, "labels": ["car"]}]}, "tasks.0: indent the settings of ob"),
        ({"model": "x"}, "model: must be a mapping, `key: value` (got 'x')"),
        ({"output": ""}, "output: must have at least 1 character (got '')"),
        ({"output": None}, "output: must be a valid string (got 'None')"),
        ({"name": "Nightly"}, "name: must match pattern '^[a-z0-9][a-z0-9-]{0,62}$' (got 'Night"),
        ({"input": {}}, "input: give exactly one of `manifest` and `scan`"),
        ({"input": {"manifest": "a", "glob": "*.mp4"}}, "input: `glob` selects files of"),
        ({"input": {"scan": "a", "manifest": "b"}}, "input: give exactly one of `manifest` and"),
        (
            {"model": {"engine": "transformers"}, "resources": {"gpus_per_replica": 2}},
            "the job: resources.gpus_per_replica is 2, but ",
        ),
        ({"sampling": {"fps": "two"}}, "sampling.fps: must be a valid number, unable to parse"),
        ({"sampling": {"fps": 0}}, "sampling.fps: must be greater than 0 (got '0')"),
        ({"sampling": {"fps": float("nan")}}, "sampling.fps: must be less than or equal to 240"),
        ({"sampling": {"min_frames": 9, "max_frames": 8}}, "sampling: min_frames 9 is over max_f"),
        ({"budget": {"image_tokens": [9, 4]}}, "budget: image_tokens must be [min, max] with"),
        ({"budget": {"image_tokens": [9]}}, "budget.image_tokens.1: required"),
        ({"tasks": "caption"}, "tasks: must be a list, such as [a, b] (got 'caption')"),
        ({"tasks": []}, "the job: tasks must name at least one task"),
        ({"tasks": ["ocr", "ocr"]}, "the job: each task may be named once, got ['ocr', 'ocr']"),
        ({"tasks": ["captoin"]}, "tasks.0: unknown task 'captoin', did you mean 'caption'?"),
        ({"tasks": ["defects"]}, "tasks.0: unknown task 'defects', known are caption, events, mo"),
        ({"tasks": [{"defects": {"prompt": "?"}}]}, "tasks.0: unknown task 'defects', known are"),
        ({"tasks": [{"name": "a", "task": "cstm"}]}, "tasks.0.task: must be 'caption', 'events',"),
        ({"tasks": [{"prompt": "?", "labels": []}]}, "tasks.0.task: required"),
        ({"tasks": [own("Defects")]}, "tasks.0: name 'Defects' must be lower-case letters, digit"),
        ({"tasks": [own("de fects")]}, "tasks.0: name 'de fects' must be lower-case letters, dig"),
        ({"tasks": [own("1st")]}, "tasks.0: name '1st' must be lower-case letters, digits and un"),
        ({"tasks": [own("d" * 64)]}, f"tasks.0: name '{'d' * 64}' must be lower-case letters,"),
        ({"tasks": [own("")]}, "tasks.0: name '' must be lower-case letters, digits and undersco"),
        ({"tasks": [{"a": own("b")}]}, "tasks.0: a is given another name: leave out `name: b`"),
        ({"tasks": [own("uri")]}, "tasks.0: 'uri' is another column of the table: choose another"),
        ({"tasks": [own("run_date")]}, "tasks.0: 'run_date' is another column of the table: choo"),
        ({"tasks": [own("ocr")]}, "tasks.0: ocr is the name of another task: give this custom it"),
        ({"tasks": [{"cars": {"task": "objects"}}]}, "tasks.0: objects has no name of its own ('"),
        ({"tasks": [own("a"), own("a")]}, "the job: each task may be named once, got ['a', 'a']"),
        (
            {"tasks": [{"fields": {"keys": ["a"]}}, {"fields": {"keys": ["b"]}}]},
            "the job: each task may be named once, got ['fields', 'fields']; name the others: "
            "{name: other, task: fields}",
        ),
        ({"tasks": [{"objects": ["car"]}]}, "tasks.0: settings must be a mapping, such as {obje"),
        ({"resources": {"replicas": 0}}, "resources.replicas: must be greater than or equal to 1"),
        ({"resources": {"replicas": "all"}}, "resources.replicas: must be a valid integer, unab"),
        ({"generation": {"seed": -1}}, "generation.seed: must be greater than or equal to 0 (got"),
        ({"storage_options": {"s3": SECRET}}, "storage_options.s3: must be a mapping"),
        ({3: 4}, "3: Keys should be strings"),
    ],
)
def test_a_mistake_is_one_line(change, line):
    lines = mistakes(LEAST | change)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert "pydantic" not in lines[0]


def test_all_mistakes_at_once():
    lines = mistakes({"input": {"scna": "x"}, "sampling": {"fps": 0}})
    assert [line.partition(":")[0] for line in lines] == [
        "input.scna",
        "output",
        "sampling.fps",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping with `input` and `output`"),
        ("- a\n- b\n", "must be a mapping with `input` and `output`"),
        ("name: a\ninput: {scan: [\n", "job.yaml, line 3: not valid YAML: "),
        ("output: a\noutput: b\n", "job.yaml, line 2: not valid YAML: output is given twice"),
        ("model:\n  source: a\n  source: b\n", "line 3: not valid YAML: source is given twice"),
        ("output: !!python/object/apply:os.system [ls]\n", "line 1: not valid YAML: could not"),
        ("a: 2026-99-99\n", r"job.yaml is not valid YAML \(ValueError\)"),
        ("{" * 5000, "not valid YAML"),
        ("name: a\x00b\n", r"job.yaml is not valid YAML \(ReaderError\)"),
    ],
)
def test_a_file_that_is_no_job(tmp_path, text, message):
    with pytest.raises(JobFileError, match=message):
        load_job(job_file(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(JobFileError, match=f"there is no job file {tmp_path}/nope.yaml"):
        load_job(tmp_path / "nope.yaml")
    with pytest.raises(JobFileError, match=r"cannot be read: .*Is a directory"):
        load_job(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output: \xe9\n")
    with pytest.raises(JobFileError, match=r"cannot be read: .*utf-8"):
        load_job(tmp_path / "latin.yaml")


def test_overrides_replace_values(tmp_path):
    path = job_file(tmp_path, "input: {scan: a}\noutput: out\nsampling:\nmodel: {source: x}\n")
    job = load_job(path, {"model.source": "y", "sampling.segmentation.seconds": 5, "name": "b"})
    assert (job.model.source, job.sampling.segmentation.seconds, job.name) == ("y", 5.0, "b")
    job = load_job(path, {"input.scan": None, "input.manifest": "m.csv"})
    assert (job.input.scan, job.input.manifest) == (None, "m.csv")


def test_overrides_without_a_file():
    job = load_job(None, {"input.scan": "clips/", "output": "out"})
    assert job == check_job(LEAST, "test")
    with pytest.raises(JobFileError, match="the job is not valid:\n  output: required"):
        load_job(None, {"input.scan": "clips/"})


def test_overrides_leave_the_callers_mapping_as_it_is():
    sampling = {"fps": 1.0}
    job = load_job(None, LEAST | {"sampling": sampling, "sampling.fps": 4})
    assert job.sampling.fps == 4
    assert sampling == {"fps": 1.0}


def test_overrides_that_lead_nowhere(tmp_path):
    path = job_file(tmp_path, "input: {scan: a}\noutput: out\ntasks: [caption]\n")
    with pytest.raises(JobFileError, match=r"output\.x: output has no keys, set it as a whole"):
        load_job(path, {"output.x": 1})
    with pytest.raises(JobFileError, match=r"tasks\.0: tasks has no keys, set it as a whole"):
        load_job(path, {"tasks.0": "ocr"})


WITH_SECRET = {"storage_options": {"s3": {"secret": SECRET, "key": "k"}}} | LEAST


def test_secrets_are_in_no_text_of_a_job():
    job = check_job(WITH_SECRET, "test")
    assert job.storage_options["s3"]["secret"] == SECRET
    for text in (repr(job), str(job), f"{job}", repr(job.public_dict()), str(vars(job.input))):
        assert SECRET not in text
    assert "storage_options" not in job.public_dict()
    assert Job.model_validate(job.public_dict()) == job.model_copy(update={"storage_options": {}})
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": ["ocr", "ocr"]},  # pydantic's message would quote the whole job
        {"input": {}},
        {"xyzzy": 1},
        {"storage_options": {"s3": SECRET}},
        {"storage_options": SECRET},
        {"storage_options": [{"s3": {"secret": SECRET}}]},
        {"storage_options": {"s3": {3: SECRET}}},
        {"storage_option": {"s3": {"secret": SECRET}}},
        {"s3": {"secret": SECRET}},
        {"secret": SECRET},
        {"model": {"storage_options": {"s3": {"secret": SECRET}}}},
        {"input": {"scan": {"secret": SECRET}}},
        {"output": {"secret": SECRET}},
        {"output": [{"secret": SECRET}]},
    ],
)
def test_secrets_are_in_no_message(change, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(JobFileError) as error:
        check_job(WITH_SECRET | change, "test")
    assert SECRET not in str(error.value) + repr(error.value) + caplog.text


def test_secrets_are_in_no_message_about_yaml(tmp_path):
    text = f"storage_options:\n  s3: {{secret: '{SECRET}, key: a}}\n"
    with pytest.raises(JobFileError, match=r"line .: not valid YAML") as error:
        load_job(job_file(tmp_path, text))
    assert SECRET not in str(error.value)
