"""What a recipe means once it is read: types, inheritance, overrides, lock, schema, shipped files."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gonggam.errors import UserErrors
from pipeline.cli_recipe import app
from pipeline.recipe import list_recipes, load_recipe, recipe_schema, upstream
from pipeline.recipe.docs import recipe_markdown
from pipeline.recipe.source import parse_override, read_source

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = list_recipes()


@pytest.fixture
def write(tmp_path):
    def write(text, name="try.yaml"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_fit_the_schema(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert jsonschema_rs.is_valid(recipe_schema(), yaml.safe_load(path.read_text("utf-8")))
    assert jsonschema_rs.is_valid(recipe_schema(), recipe.resolved())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_training_arguments_are_accepted_by_trl_and_peft(path, tmp_path):
    from peft import LoraConfig
    from transformers import TrainingArguments
    from trl import DPOConfig, SFTConfig

    recipe = load_recipe(path)
    machine = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    for section in filter(None, (recipe.classify, recipe.style)):
        assert TrainingArguments(**section.arguments, **machine).learning_rate
    if recipe.sft:
        assert SFTConfig(**recipe.sft.arguments, **machine).max_length
        if recipe.sft.lora is not None:
            assert LoraConfig(task_type="CAUSAL_LM", **recipe.sft.lora).r == recipe.sft.lora["r"]
    if recipe.dpo:
        assert DPOConfig(**recipe.dpo.arguments, **machine).beta == 0.1
        assert not recipe.dpo.lora, "DPO goes on with the SFT adapter"


def test_the_keys_read_from_source_are_those_of_the_dataclasses():
    from peft import LoraConfig
    from trl import DPOConfig, SFTConfig

    for known, real in ((upstream.SFT, SFTConfig), (upstream.DPO, DPOConfig), (upstream.LORA, LoraConfig)):
        fields = {field.name: field for field in dataclasses.fields(real) if field.init}
        model = upstream.model_of(known)
        assert set(model.model_fields) == set(fields)
        for name, field in fields.items():
            default = model.model_fields[name].default
            if default is not None and field.default is not dataclasses.MISSING:
                assert default == field.default, name


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_its_configurations(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes == {"cpu": 1, "single": 1, "cpu2": 2, "two-nodes": 16}.get(file.stem, 8)
    assert config.use_cpu == file.stem.startswith("cpu")
    assert config.distributed_type == {
        "cpu": "NO",
        "single": "NO",
        "fsdp2": "FSDP",
        "zero3": "DEEPSPEED",
    }.get(file.stem, "MULTI_GPU")


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_launch_knows_every_setting(file):
    """accelerate takes unknown keys of the inner mappings without a word."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    known = vars(launch_command_parser().parse_args(["script.py"]))
    written = yaml.safe_load(file.read_text("utf-8"))
    inner = {**written.pop("fsdp_config", {}), **written.pop("deepspeed_config", {})}
    assert set(inner) <= set(known)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "script.py"]))
    assert args.multi_gpu == (file.stem in ("cpu2", "ddp", "two-nodes"))
    assert args.use_fsdp == (file.stem == "fsdp2")
    assert args.use_deepspeed == (file.stem == "zero3")
    assert all(str(getattr(args, key)) == str(value) for key, value in inner.items())


def test_numbers_and_words_are_those_of_yaml_1_2(write):
    path = write(
        "a: 1e-4\nb: 2.0e-4\nc: no\nd: on\ne: 2026-01-01\nf: 010\ng: null\nh: ~\ni: .inf\nj: '1e-4'\nk: True\n"
    )
    assert read_source(path).data == {
        "a": 1e-4,
        "b": 2e-4,
        "c": "no",
        "d": "on",
        "e": "2026-01-01",
        "f": 10,
        "g": None,
        "h": None,
        "i": float("inf"),
        "j": "1e-4",
        "k": True,
    }


def test_extends_merges_mappings_replaces_lists_and_keeps_origins(write):
    base = write(
        "name: base\nprepare:\n  sources: [{reader: messages}, {reader: pairs}]\n  split: {test: 0.1}\ntiny: {}\n"
        "sft:\n  lora: {r: 8, lora_alpha: 4}\n  learning_rate: 1e-3\n",
        "base.yaml",
    )
    child = write(
        "extends: base.yaml\nprepare:\n  sources: [{reader: alpaca}]\n"
        "sft:\n  lora: {r: 2}\ntiny: null\nmodel: {base: gpt2}\n"
    )
    recipe = load_recipe(child)
    assert recipe.name == "try", "the name is not inherited: two recipes must not share a folder"
    assert [source.reader for source in recipe.prepare.sources] == ["alpaca"]
    assert recipe.prepare.split.test == 0.1
    assert recipe.sft.lora == {"r": 2, "lora_alpha": 4}
    assert recipe.sft.arguments == {"learning_rate": 1e-3}
    assert recipe.tiny is None
    assert recipe.stages == ["prepare", "sft"]
    with pytest.raises(UserErrors) as caught:
        load_recipe(child, ["sft.x=1", "prepare.split.y=1"])
    assert {e.file for e in caught.value.errors} == {"command line"}
    base.write_text(base.read_text().replace("test: 0.1", "tset: 0.1").replace("lora_alpha", "alpha"))
    with pytest.raises(UserErrors) as caught:
        load_recipe(child)
    assert [(Path(e.file).name, e.line) for e in caught.value.errors] == [("base.yaml", 4), ("base.yaml", 7)]


def test_a_recipe_can_extend_a_shipped_one_by_name(write):
    recipe = load_recipe(write("extends: eeve-10.8b\nsft: {num_train_epochs: 2}\n"))
    assert recipe.model.base == "yanolja/EEVE-Korean-Instruct-10.8B-v1.0"
    assert recipe.sft.arguments["num_train_epochs"] == 2


def test_merge_keys_and_anchors_work(write):
    text = "tiny: {}\nsft:\n  lora: &l {r: 4, lora_alpha: 8}\ndpo:\n  reference: base\n  lora:\n    <<: *l\n    r: 2\n"
    recipe = load_recipe(write(text))
    assert recipe.dpo.lora == {"r": 2, "lora_alpha": 8}


def test_overrides_reach_lists_new_keys_and_whole_sections():
    recipe = load_recipe(
        "demo",
        [
            "sft.learning_rate=1e-4",
            "sft.lora.r=8",
            "prepare.sources.0.rows=9",
            "dpo.loss_type=[sigmoid, sft]",
            "eval=null",
        ],
    )
    assert recipe.sft.arguments["learning_rate"] == 1e-4
    assert recipe.sft.lora["r"] == 8
    assert recipe.prepare.sources[0].rows == 9
    assert recipe.dpo.arguments["loss_type"] == ["sigmoid", "sft"]
    assert recipe.eval is None
    assert load_recipe("demo", ["seed=7"]).seed == 7


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(categories=["L", "M", "N", "P", "S"], include_characters=" "), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z_]{1,8}|[0-9]", fullmatch=True), min_size=1, max_size=4), json_values)
def test_an_override_is_read_back_as_it_was_written(key, value):
    assert parse_override(f"{'.'.join(key)}={json.dumps(value, ensure_ascii=False)}") == (tuple(key), value)


def test_reference_follows_the_stages(write):
    assert load_recipe(write("tiny: {}\nsft: {}\ndpo: {}\n")).dpo.reference == "sft"
    assert load_recipe(write("tiny: {}\ndpo: {}\n")).dpo.reference == "base"
    assert load_recipe(write("tiny: {}\nsft: {}\ndpo: {reference: base}\n")).dpo.reference == "base"


def test_sections_are_plain_data_that_does_not_change_with_spelling(write):
    one = load_recipe(write("tiny: {hidden_size: 256}\nsft: {learning_rate: 1e-4}\n", "one.yaml"))
    two = load_recipe(write("sft: {learning_rate: 0.0001}\ntiny: {}\n", "two.yaml"))
    assert one.section("tiny") == two.section("tiny")
    assert one.section("sft") == two.section("sft") == {"lora": {}, "learning_rate": 1e-4}
    assert one.section("dpo") == {}
    assert json.loads(json.dumps(one.resolved())) == one.resolved()


def test_the_lock_is_a_recipe_that_says_the_same(tmp_path):
    recipe = load_recipe("demo", ["sft.lora.r=4"])
    lock = tmp_path / "recipe.lock.yaml"
    recipe.write_lock(lock, data_hashes={"prepare": "ab" * 32}, command=["gonggam", "run", "a b.yaml"])
    again = load_recipe(lock)
    assert again.resolved() == recipe.resolved()
    assert again.name == "demo"
    locked = yaml.safe_load(lock.read_text("utf-8"))["locked"]
    assert locked["data"] == {"prepare": "ab" * 32}
    assert locked["command"] == "gonggam run 'a b.yaml'"
    assert locked["overrides"] == ["sft.lora.r=4"]
    assert locked["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert {"torch", "trl", "transformers", "peft"} <= set(locked["packages"])
    if locked["git"] is not None:
        assert len(locked["git"]["commit"]) == 40


def test_the_lock_of_an_installed_copy_names_no_commit(monkeypatch):
    from pipeline.recipe.lock import git_state

    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_annotations_of_any_spelling_are_read(tmp_path, monkeypatch):
    """What the libraries may write tomorrow: quoted types, unions of both kinds, enums, classes of other packages."""
    package = tmp_path / "upstream_example"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("class Base:\n    first: 'int | None' = None\n    def method(self): ...\n")
    (package / "config.py").write_text(
        """
from dataclasses import dataclass, field
from enum import Enum
from elsewhere import Foreign
from .inner import Base
from .missing import Absent

class Kind(str, Enum):
    one = "one"
    two = "two"

class Nested:
    pass

class Config(Base, generic.Mixin, Foreign, Absent):
    kind: Union[Kind, str] = Kind.one
    numbers: list[int] = field(default_factory=lambda: [1, 2])
    made: list = field(default_factory=list)
    way: str = field(default="a", metadata={"help": "100%% sure", "choices": ["a", "b"], "more": 1})
    maybe: Optional[str] = field(default=None, metadata={"choices": ["x"]})
    nested: Nested = None
    foreign: Foreign = None
    odd: package.Type = 3
    plain = 4
""",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = upstream.model_of(upstream.Upstream("upstream_example", "config", "Config"))
    fields = model.model_fields
    assert list(fields) == ["first", "kind", "numbers", "made", "way", "maybe", "nested", "foreign", "odd"]
    assert (fields["numbers"].default, fields["made"].default, fields["kind"].default) == ([1, 2], None, None)
    assert fields["way"].description == "100% sure"
    taken = {"first": None, "kind": "two", "numbers": [3], "way": "b", "maybe": None, "nested": {"a": 1}, "odd": "x"}
    assert model(**taken).model_dump(include=set(taken)) == taken
    for wrong in ({"first": "x"}, {"kind": "three"}, {"way": "c"}, {"maybe": "y"}, {"nested": 3}, {"plain": 4}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model(**wrong)


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        upstream.model_of(upstream.Upstream("no_such_library", "config", "Config"))


def test_the_schema_refuses_what_the_loader_refuses():
    schema = recipe_schema()
    assert jsonschema_rs.is_valid(schema, {"extends": "demo", "sft": {"learning_rate": 1e-4}})
    for wrong in (
        {"sftt": {}},
        {"sft": {"warmup_ratio": 0.1}},
        {"sft": {"output_dir": "x"}},
        {"dpo": {"lora": {"rank": 3}}},
        {"sft": {"optim": "adamw"}},
        {"prepare": {"sources": [{"raeder": "x"}]}},
    ):
        assert not jsonschema_rs.is_valid(schema, wrong), wrong


def test_the_reference_page_is_up_to_date():
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert page == recipe_markdown(), "run: gonggam recipe schema --markdown > docs/recipes.md"


def test_checking_a_recipe_loads_nothing_heavy():
    code = (
        "import sys; from pipeline.cli_recipe import app\n"
        "app(['check', 'eeve-10.8b-nf4'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_commands_print_what_they_say():
    run = CliRunner().invoke
    assert "no errors" in run(app, ["check", "demo", "sft.learning_rate=1e-4"]).output
    assert yaml.safe_load(run(app, ["show", "kullm3"]).output)["model"]["base"] == "nlpai-lab/KULLM3"
    listed = run(app, ["list"]).output.splitlines()
    assert [line.split()[0] for line in listed] == [path.stem for path in SHIPPED]
    assert json.loads(run(app, ["schema"]).output) == recipe_schema()
    assert isinstance(run(app, ["check", "demo", "sft.lr=1"]).exception, UserErrors)
