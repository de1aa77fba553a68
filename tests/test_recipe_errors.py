"""Every mistake a user can make in a recipe gets one line with its place; all of them come at once."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gonggam.errors import UserError, UserErrors
from pipeline.recipe import STAGES, check_stage, find_recipe, list_recipes, load_recipe
from pipeline.recipe.keys import key_hint, known_keys
from pipeline.recipe.sections import section_model

GOOD = """\
name: try
prepare:
  sources: [{reader: counsel_ko}]
tiny: {hidden_size: 64}
sft:
  lora: {r: 8}
  learning_rate: 1e-4
dpo:
  reference: sft
  lora:
    r: 8
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="try.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def errors_of(path, overrides=()):
    with pytest.raises(UserErrors) as caught:
        load_recipe(path, overrides)
    return list(caught.value.errors)


def only_error(path, overrides=()):
    (error,) = errors_of(path, overrides)
    return error


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (GOOD.replace("learning_rate", "learning_rte"), 7, "did you mean learning_rate?"),
        (GOOD.replace("sft:", "sftt:", 1).replace("reference: sft", "reference: base"), 5, "did you mean sft?"),
        (GOOD.replace("hidden_size", "hiden_size"), 4, "did you mean hidden_size?"),
        (GOOD.replace("reader:", "raeder:"), 3, "did you mean reader?"),
        (GOOD.replace("    r: 8", "    rr: 8"), 11, "unknown key dpo.lora.rr"),
        (GOOD.replace("{r: 8}", "{r: 0}"), 6, "sft.lora.r must be greater than or equal to 1, not 0"),
        (GOOD.replace("1e-4", "1e-4\n  num_train_epochs: -2"), 8, "sft.num_train_epochs must be greater than 0"),
        (GOOD.replace("1e-4", "1e-4\n  max_length: 0"), 8, "sft.max_length must be greater than or equal to 1"),
        (GOOD.replace("reference: sft", "beta: -1"), 9, "dpo.beta must be greater than 0, not -1"),
        (GOOD.replace("reference: sft", "loss_type: [sigmoidd]"), 9, "did you mean sigmoid?"),
        (GOOD.replace("reference: sft", "f_divergence_type: forward"), 9, "did you mean forward_kl?"),
        (GOOD.replace("reader: counsel_ko", "reader: alpacca"), 3, "no reader 'alpacca'. did you mean 'alpaca'?"),
        (GOOD + "eval: {rubric: counsel}\n", 12, "no such rubric: counsel. give the path of a YAML file, or one of: c"),
        (GOOD + "eval: {criteria: [empathyy]}\n", 12, "empathyy"),
        (GOOD + "eval: {judge: gtp-4o}\n", 12, "no such judge: gtp-4o"),
        (GOOD + "eval: {judge: [local, gtp-4o]}\n", 12, "no such judge: gtp-4o"),
        (GOOD + "eval: {simulate: {cast: people}}\n", 12, "no such cast: people"),
        (GOOD.replace("    r: 8", "    lora_rank: 8"), 11, "use r"),
        (GOOD.replace("  lora:\n    r: 8", "  r: 8"), 10, "it belongs under sft.lora or dpo.lora"),
        (GOOD + "learning_rate: 1\n", 12, "it belongs under"),
        (GOOD.replace("1e-4", "fast"), 7, 'sft.learning_rate must be a number, not "fast"'),
        (GOOD.replace("1e-4", "true"), 7, "must be a number, not true"),
        (GOOD.replace("    r: 8", "    r: 8.5"), 11, "dpo.lora.r must be a"),
        (GOOD.replace("learning_rate: 1e-4", "optim: adamw_troch"), 7, "did you mean adamw_torch?"),
        (GOOD.replace("learning_rate: 1e-4", "packing: yes"), 7, "must be true or false"),
        (GOOD.replace("reference: sft", "loss_type: sigmoid"), 9, "write [sigmoid]"),
        (GOOD.replace("hidden_size: 64", "hidden_size: 65"), 4, "multiple of num_attention_heads"),
        (GOOD.replace("hidden_size: 64", "num_key_value_heads: 3"), 4, "multiple of num_key_value_heads"),
        (GOOD.replace("hidden_size: 64", "architecture: gpt2, num_key_value_heads: 2"), 4, "gpt2 has no num_key"),
        (GOOD.replace("tiny: {hidden_size: 64}", "tiny: 3"), 4, "tiny must hold keys and values"),
        (GOOD.replace("name: try", "name: a/b"), 1, "cannot be the name of a run"),
        (GOOD + "seed: many\n", 12, "seed must be a whole number"),
        (GOOD.replace("  learning_rate: 1e-4", "  learning_rate: 1e-4\n  learning_rate: 2e-4"), 8, "written twice"),
        (GOOD.replace("tiny: {hidden_size: 64}\n", ""), 1, "neither model.base nor tiny"),
        ("prepare: {sources: [{reader: counsel_ko}]}\nclassify: {}\n", 2, "classify has neither a base nor a tiny one"),
        (GOOD + "model: {base: gpt2}\n", 4, "tiny builds a base model, but model.base names one"),
        (GOOD.replace("sft:\n  lora: {r: 8}\n  learning_rate: 1e-4\n", ""), 6, "no sft section"),
        (GOOD.replace("learning_rate: 1e-4", "bf16: true\n  fp16: true"), 8, "bf16 and fp16 exclude each other"),
        (GOOD + "model: {chat_template: nowhere}\n", 12, "no chat template 'nowhere'"),
        (GOOD + "chat: {system: nowhere.txt}\n", 12, "no system prompt 'nowhere.txt'"),
        (GOOD.replace("sources: [{reader: counsel_ko}]", "split: {test: 0.1}"), 2, "prepare.sources is missing"),
        ("name: x\nseed: 1\n", 1, "there is no stage to run"),
        ("name: x\n\ttiny: {}\n", 2, "not valid YAML"),
        ("name: 'x\n", 2, "not valid YAML"),
        ("- a\n- b\n", 1, "a recipe is a mapping"),
        ("tiny: !!python/object:os.system {}\n", 1, "has no meaning here"),
        ("tiny: {hidden_size: !big 3}\n", 1, "has no meaning here"),
        ("? [a, b]\n: c\n", 1, "a key must be a plain word"),
        ("tiny: &a {x: *a}\n", 1, "inside its own anchor"),
        (GOOD.replace("    r: 8", "    r: 16"), 10, "dpo.lora differs from sft.lora"),
        (GOOD.replace("    r: 8", "    null"), 10, "preference optimisation trains an adapter"),
        (
            GOOD.replace("{r: 8}", "null") + "model: {quantization: nf4}\n",
            6,
            "sft.lora is null, but quantised weights cannot be trained",
        ),
        (GOOD + "memory:\n  <<: 3\n", 13, "must be followed by an alias of a mapping"),
        ("name: x\nextends: nowhere.yaml\n", 2, "which does not exist"),
        ("extends: [a.yaml]\n", 1, "extends must name one recipe"),
    ],
)
def test_a_mistake_is_named_with_its_line(write, text, line, says):
    path = write(text)
    found = errors_of(path)
    assert any(error.line == line and says in str(error) for error in found), [str(e) for e in found]
    assert all(str(error).startswith(f"{path}:") and "\n" not in str(error) for error in found)


def test_all_errors_come_at_once_sorted_by_line(write):
    text = GOOD.replace("learning_rate", "warmup_ratio").replace("hidden_size", "hiden_size").replace("try", "a/b")
    found = errors_of(write(text.replace("    r: 8", "    r: x")))
    assert [error.line for error in found] == [1, 4, 7, 10, 11]


def test_korean_in_another_encoding_is_called_by_name(write):
    for encoding, name in (("cp949", "CP949"), ("utf-16", "UTF-16")):
        error = only_error(write((GOOD + "# 공감\n").encode(encoding)))
        assert name in error.what
        assert "iconv" in error.hint
    assert "not UTF-8" in only_error(write(b"name: \xff\xff\xff\n")).what
    assert load_recipe(write(("﻿" + GOOD).encode())).name == "try", "a byte order mark is no error"


def test_an_empty_file_is_called_empty(write):
    for text in ("", "# nothing\n", "\n\n"):
        assert "empty" in only_error(write(text)).what


def test_a_control_character_is_a_yaml_error(write):
    assert "not valid YAML" in only_error(write("name: a\ntiny: {x: \x07}\n")).what


def test_nesting_without_end_is_a_yaml_error(write):
    assert "not valid YAML" in only_error(write("name: " + "[" * 20000)).what


def test_a_missing_recipe_names_the_nearest_shipped_one(tmp_path):
    with pytest.raises(UserError, match=r"recipe not found\. did you mean demo"):
        load_recipe("dmo")
    with pytest.raises(UserError, match="this is a folder"):
        load_recipe(tmp_path)


def test_a_recipe_that_cannot_be_read_says_why(write, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    found = errors_of(write("name: x\nextends: folder.yaml\n"))
    assert any("folder.yaml" in str(error) for error in found), [str(e) for e in found]


def test_a_circle_of_extends_names_both_files(write):
    one = write("extends: two.yaml\n", "one.yaml")
    write("extends: one.yaml\n", "two.yaml")
    message = str(only_error(one))
    assert "one.yaml" in message
    assert "two.yaml:1" in message


def test_an_error_in_the_extended_recipe_carries_its_file(write):
    base = write(GOOD.replace("learning_rate", "learning_rte"), "base.yaml")
    error = only_error(write("extends: base.yaml\nsft:\n  max_length: 64\n"))
    assert (error.file, error.line) == (str(base), 7)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sft.learning_rte=1e-4", "did you mean learning_rate?"),
        ("sfft.learning_rate=1", "did you mean sft?"),
        ("sft.learning_rate=high", "must be a number"),
        ("sft.learning_rate", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("sft..r=3", "write section.key=value"),
        ("sft.optim=[", "not valid YAML"),
        ("sft.optim=!!python/name:os.system", "has no meaning here"),
        ("prepare.sources.7.path=x", "there is no entry '7'"),
        ("prepare.sources.x.path=y", "there is no entry 'x'"),
        ("extends=demo", "extends cannot be overridden"),
        ("name.x=3", "cannot be the name of a run"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_command_line(write, override, says):
    error = only_error(write(GOOD), [override])
    assert str(error).startswith("command line: ")
    assert says in str(error)


def test_errors_of_file_and_command_line_come_together(write):
    found = errors_of(write(GOOD.replace("hidden_size", "hiden_size")), ["sft.lr=1", "nonsense"])
    assert [error.line for error in found] == [4, None, None]


def test_stages_are_checked_by_name():
    demo = load_recipe("demo")
    assert check_stage("sft", demo) == "sft"
    with pytest.raises(UserError, match="did you mean prepare"):
        check_stage("perpare")
    with pytest.raises(UserError, match="the stages are: prepare"):
        check_stage("zzz")
    with pytest.raises(UserError, match="has no stage 'tiny'"):
        check_stage("tiny", load_recipe("qwen3-0.6b"))
    assert all(check_stage(stage) == stage for stage in STAGES)


def groups():
    return [(kind, group, key) for kind, by in known_keys().items() for group, keys in by.items() for key in keys]


@pytest.mark.parametrize(("kind", "group", "key"), groups())
def test_renamed_and_owned_keys_are_refused_with_a_reason(write, kind, group, key):
    """Each entry is checked against the installed libraries: the old name is gone, the new one exists."""
    section = {"training": "sft", "lora": "sft"}.get(group, group)
    model = section_model(section)
    if group == "lora":
        model = next(k for k in get_args(model.model_fields["lora"].annotation) if hasattr(k, "model_fields"))
    assert key not in model.model_fields
    says = known_keys()[kind][group][key]
    if kind == "renamed" and "now" in says:
        assert says["now"] in model.model_fields
    lines = {"training": f"sft: {{{key}: 1}}", "lora": f"sft: {{lora: {{{key}: 1}}}}"}
    text = "prepare: {sources: [{reader: counsel_ko}]}\n" + lines.get(group, f"{section}: {{{key}: 1}}") + "\n"
    error = next(e for e in errors_of(write(text)) if f".{key}" in e.what)
    assert error.line == 2
    assert error.hint == key_hint({"training": "sft"}.get(group, group), key).text


def test_a_run_is_served_without_the_rubric_that_it_was_judged_by(write):
    assert load_recipe(write(GOOD + "eval: {rubric: gone.yaml}\nlocked: {}\n")).eval.rubric == "gone.yaml"


def test_owned_keys_exist_upstream():
    """An owned key that a library dropped would be a dead entry."""
    from pipeline.recipe import upstream

    kinds = {"training": upstream.SFT, "sft": upstream.SFT, "dpo": upstream.DPO, "lora": upstream.LORA}
    for group, keys in known_keys()["owned"].items():
        assert set(keys) <= set(upstream.model_of(kinds[group]).model_fields)


PLACES = [(s, k) for s in ("tiny", "sft", "dpo", "memory", "chat", "eval") for k in section_model(s).model_fields]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLACES), st.integers(0, 40), st.sampled_from("abcxyz_0"))
def test_any_mangled_key_gets_an_error_with_its_line(tmp_path_factory, place, position, letter):
    section, key = place
    at = position % len(key)
    mangled = key[:at] + letter + key[at:]
    data = yaml.safe_load(GOOD)
    data.setdefault(section, {})
    data[section] = {**data[section], mangled: 1}
    text = yaml.safe_dump(data, sort_keys=False)
    path = tmp_path_factory.mktemp("mangled") / "r.yaml"
    path.write_text(text)
    if mangled in section_model(section).model_fields:
        return
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"{mangled}:"))
    assert line in [error.line for error in errors_of(path)]


def test_find_recipe_takes_names_and_paths(write, monkeypatch, tmp_path):
    path = write(GOOD)
    assert find_recipe(path) == path
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.yaml", "recipes/demo.yaml"):
        assert find_recipe(name).name == "demo.yaml"
    assert Path("demo") not in list_recipes()
