"""The category classifier: trained for real on a small table, measured, calibrated, saved, loaded elsewhere."""

import json
import shutil

import numpy as np
import pytest

from gonggam.errors import UserError

TOPICS = {
    "수면": ["잠이 안 와요", "밤에 자꾸 깨요", "불면증이 심해요", "새벽까지 못 자요"],
    "직장": ["상사가 괴롭혀요", "회사에 가기 싫어요", "야근이 너무 많아요", "동료와 다퉜어요"],
    "가족": ["엄마와 싸웠어요", "아빠가 미워요", "동생이 말을 안 들어요", "가족 모임이 힘들어요"],
}
ANSWERS = {label: [f"{label} 이야기군요. 더 들려주실래요? {n}" for n in range(3)] for label in TOPICS}
RECIPE = """\
name: mini
prepare:
  sources: [{{reader: wellness, path: {table}}}]
  split: {{validation: 0.2, test: 0.2}}
  deduplicate: {{exact: false, near: null}}
tiny:
  {{architecture: modernbert, vocab_size: 340, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
   intermediate_size: 32, max_position_embeddings: 64, max_steps: 1}}
classify:
  {{answers: {table}, precision: 0.9, learning_rate: 5e-3, num_train_epochs: 6, per_device_train_batch_size: 8,
   max_length: 48, early_stopping_patience: 3, learning_curve: [0.3, 0.02]}}
"""


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table as AI Hub's: the category in the first of its rows only, answers beside some of the questions."""
    path = tmp_path_factory.mktemp("table") / "wellness.csv"
    lines = ["구분,유저,챗봇"]
    for label, said in TOPICS.items():
        for number in range(36):
            often = ["요즘", "정말", "어제부터", "계속", "사실", "또"][number % 6]
            told = f"{often} {said[number % 4]} {number}번째예요"
            answer = ANSWERS[label][number] if number < 3 else ""
            lines.append(f"{label if number == 0 else ''},{told},{answer}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(table, tmp_path_factory):
    """A finished run of the classifier. Read only."""
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    folder = tmp_path_factory.mktemp("classic")
    recipe = folder / "mini.yaml"
    recipe.write_text(RECIPE.format(table=table), encoding="utf-8")
    state = Run(folder / "runs" / "mini")
    execute(load_recipe(recipe), state, ["test"], only=None, start=None, force=False)
    return state


@pytest.fixture(scope="session")
def classifier(run):
    from pipeline.chat.categories import CategoryClassifier

    return CategoryClassifier.load(run.stage("classify") / "model")


def test_it_learns_and_tells_how_well(run):
    metrics = run.manifest("classify")["metrics"]
    assert metrics["test"]["accuracy"] > 0.7
    assert metrics["test"]["top_3"] == 1
    assert metrics["labels"] == 3
    assert metrics["answers"] == 9
    page = (run.stage("classify") / "report.md").read_text("utf-8")
    for heading in ("accuracy", "macro-F1", "expected calibration error", "What is mixed up", "Learning curve"):
        assert heading in page
    sizes = [point["texts"] for point in metrics["learning_curve"]]
    assert sizes == [round(0.02 * sizes[-1]), round(0.3 * sizes[-1]), metrics["examples"]["train"]]
    assert metrics["learning_curve"][-1]["accuracy"] == metrics["test"]["accuracy"]
    assert not list((run.stage("classify") / "learning").glob("*/checkpoints"))
    assert "| label | taken for | texts |" in page or "Nothing: every" in page
    assert "| surest texts | confidence from | told rightly |" in page
    whole = metrics["examples"]["test"]
    assert f"| {round(metrics['test']['accuracy'] * whole)} of {whole} |" in page


def test_nothing_that_is_saved_is_a_pickle_and_another_place_will_do(run, classifier, tmp_path):
    moved = shutil.copytree(run.stage("classify") / "model", tmp_path / "somewhere else")
    assert not [p for p in moved.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pth")]
    from pipeline.chat.categories import CategoryClassifier

    texts = ["잠이 안 와요", "회사에 가기 싫어요"]
    assert np.array_equal(CategoryClassifier.load(moved).probabilities(texts), classifier.probabilities(texts))


def test_a_labels_file_of_another_model_is_refused(run, tmp_path):
    from pipeline.chat.categories import CategoryClassifier

    moved = shutil.copytree(run.stage("classify") / "model", tmp_path / "model")
    file = moved / "labels.json"
    good = json.loads(file.read_text("utf-8"))
    for spoiled in (
        good | {"names": good["names"][::-1]},
        good | {"names": good["names"][:2], "answers": {}},
        good | {"answers": {"모름": ["네"]}},
        {"names": good["names"], "colour": "blue"},
    ):
        file.write_text(json.dumps(spoiled), encoding="utf-8")
        with pytest.raises(UserError, match=r"labels\.json"):
            CategoryClassifier.load(moved)


def test_batched_and_single_probabilities_agree_and_threads_share_batches(classifier):
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"{said} {n}" for n in range(4) for group in TOPICS.values() for said in group]
    whole = classifier.probabilities(texts)
    assert np.allclose(whole.sum(1), 1, atol=1e-5)
    with ThreadPoolExecutor(8) as pool:
        single = list(pool.map(lambda text: classifier.ask([text])[0], texts))
    assert np.allclose(whole, np.stack(single), atol=1e-5)


def test_an_empty_text_is_an_error_for_whoever_asks_it_and_nobody_else(classifier):
    from concurrent.futures import ThreadPoolExecutor

    def ask(text):
        try:
            return len(classifier.ask([text]))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, ["잠이 안 와요", " "] * 40))
    assert set(told[::2]) == {1}
    assert all("empty text" in one for one in told[1::2])


def test_labels_unknown_to_training_are_left_out_and_counted(tmp_path):
    from pipeline.train.labelled import Naming, read_labelled

    def put(split, rows):
        path = tmp_path / "labelled" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(json.dumps({"text": t, "label": label}) for t, label in rows), encoding="utf-8")

    put("train", [("a", "x/1"), ("b", "x/1"), ("c", "y"), ("", "y")])
    put("validation", [("d", "x/1"), ("e", "new")])
    put("test", [("f", "y")])
    found = read_labelled(tmp_path, Naming())
    assert (found.labels, found.unknown, found.single) == (("x/1", "y"), {"new": 1}, ("y",))
    assert read_labelled(tmp_path, Naming(levels=1)).labels == ("x", "y")
    assert read_labelled(tmp_path, Naming(merge={"x/1": "z"})).labels == ("y", "z")
    part = read_labelled(tmp_path, Naming()).part(0.4)
    assert len(part.splits["train"]) == 1
    assert part.labels == ("x/1", "y")  # labels without a text stay labels
    put("test", [("f", "elsewhere"), ("g", "nowhere")])
    with pytest.raises(UserError, match=r"has a label of the 2 test texts\. .*classify\.levels"):
        read_labelled(tmp_path, Naming())
    put("train", [("a", "x")])
    with pytest.raises(UserError, match="1 labels where two are needed"):
        read_labelled(tmp_path, Naming())


def test_answers_for_no_known_label_and_tables_without_answers_are_refused(tmp_path):
    from data_prep.reviewed import read_answers

    path = tmp_path / "answers.csv"
    path.write_text("category,answer\n수면,푹 쉬세요\n,따뜻한 우유요\n", encoding="utf-8")
    assert read_answers(str(path)) == {"수면": ["푹 쉬세요", "따뜻한 우유요"]}
    path.write_text("category,colour\n수면,푸른색\n", encoding="utf-8")
    with pytest.raises(UserError, match="no category with an answer"):
        read_answers(str(path))


def test_figures_by_hand():
    from pipeline.train.judged import Judged, figures, mixed_up

    rows = np.array([[0.75, 0.2, 0.05], [0.65, 0.25, 0.1], [0.1, 0.55, 0.35], [0.2, 0.15, 0.65]], dtype=np.float32)
    judged = Judged.of([0, 1, 1, 2], [rows[:3], rows[3:]])
    found = figures(judged)
    assert found["accuracy"] == 0.75
    assert found["top_3"] == found["top_5"] == 1
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["ece"] == pytest.approx((0.25 + 2 * 0.15 + 0.45) / 4, abs=1e-6)
    assert mixed_up(judged, ["a", "b", "c"]) == [{"label": "a", "taken for": "b", "texts": 1}]
    assert judged.right.tolist() == [True, False, True, True]


def test_a_lucky_few_set_no_confidence_and_it_is_kept_on_texts_it_never_saw():
    from pipeline.train.judged import Judged, confidence_for

    def judged(confidence, right):
        return Judged(np.zeros(len(right), dtype=int), np.where(right, 0, 1)[:, None], np.asarray(confidence))

    few = judged(np.linspace(0.99, 0.6, 40), np.arange(40) < 10)
    confidence, share = confidence_for(few, 0.8)  # ten in a row right, then none: no eleventh to show 0.8
    assert share == 0
    assert confidence > 0.99
    assert confidence_for(few, 0.6) == (pytest.approx(0.99 - 0.01 * 11), 0.3)  # ten of twelve
    tied = judged([0.9] * 20 + [0.5] * 20, np.arange(40) < 20)
    assert confidence_for(tied, 0.8) == (0.9, 0.5)

    rng = np.random.default_rng(0)
    kept = []
    for _ in range(200):  # classifiers that are right as often as they are sure
        sure = rng.random(200)
        confidence, share = confidence_for(judged(sure, rng.random(200) < sure), 0.7)
        kept.append(share == 0 or (1 + confidence) / 2 >= 0.7)  # what is right of all texts above the confidence
    assert np.mean(kept) > 0.9


def test_a_hundred_thousand_labels_take_no_table_of_all_by_all():
    from pipeline.train.judged import Judged, figures, mixed_up, worst_labels

    labels, rng = 100_000, np.random.default_rng(0)
    true = rng.integers(labels, size=64)
    rows = rng.random((64, labels), dtype=np.float32)
    rows[np.arange(48), true[:48]] = 2
    judged = Judged.of(true.tolist(), [rows[:32], rows[32:]])
    assert figures(judged)["accuracy"] >= 0.75
    names = [str(n) for n in range(labels)]
    assert len(mixed_up(judged, names)) <= 15
    assert len(worst_labels(judged, names)) == 8


def test_rare_labels_weigh_as_much_more_as_they_are_rarer():
    torch = pytest.importorskip("torch")
    from pipeline.train.classify import class_weights, weighted_loss
    from pipeline.train.labelled import Example, Labelled

    data = Labelled(("a", "b"), {"train": [Example("t", "a")] * 3 + [Example("t", "b")]})
    assert class_weights(data).tolist() == pytest.approx([2 / 3, 2])
    outputs, labels = {"logits": torch.zeros(4, 2)}, torch.tensor([0, 0, 0, 1])
    assert float(weighted_loss(class_weights(data))(outputs, labels)) == pytest.approx(np.log(2))


def test_lora_is_merged_so_that_one_folder_holds_all(run, tmp_path):
    from dataclasses import replace

    from pipeline.chat.categories import CategoryClassifier
    from pipeline.model import load_tokenizer
    from pipeline.recipe import ModelOptions, load_recipe
    from pipeline.train.classify import run_classify

    section = load_recipe(run.folder / "recipe.lock.yaml").classify
    section = replace(section, lora={"r": 2, "target_modules": "all-linear"}, arguments={"max_steps": 2})
    base = str(run.stage("tiny") / "model")
    run_classify(section, base, load_tokenizer(base), ModelOptions(), run.stage("prepare"), tmp_path, seed=1)
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    assert CategoryClassifier.load(tmp_path / "model").probabilities(["잠이 안 와요"]).shape == (1, 3)


def test_the_run_is_a_counsellor_that_answers_from_the_list(run):
    from pipeline.chat.counselor import Counselor

    bot = Counselor.load(run.folder, min_confidence=0.0)
    reply = bot.reply("요즘 상사가 괴롭혀요")
    assert (reply.category, reply.index, reply.source) == ("직장", sorted(TOPICS).index("직장"), "reviewed")
    assert reply.text in ANSWERS["직장"]
    assert 0.4 < reply.score <= 1
    assert bot.reply("죽고 싶어요").source == "safety"
    moved = Counselor.load(run.stage("classify") / "model", min_confidence=0.0)
    assert moved.reply("요즘 상사가 괴롭혀요").category == "직장"
    bot.close()


def test_a_run_that_is_unsure_hands_over_to_the_model_it_names(run, tmp_path):
    from chat_standin import tiny_model

    from pipeline.chat.backends import Request
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.reviewed import PickedStream

    request = Request([{"role": "user", "content": "요즘 상사가 괴롭혀요"}])
    bot = Counselor.load(run.folder, min_confidence=1.1, fallback=str(tiny_model(tmp_path)), max_new_tokens=4)
    assert not isinstance(bot.backend.stream([request])[0], PickedStream)
    assert bot.backend.count(request.messages) > 0
    bot.close()
    itself = Counselor.load(run.folder, min_confidence=1.1, fallback=str(run.folder))
    assert itself.reply("요즘 상사가 괴롭혀요").source in ("reviewed", "notice")


def test_every_generation_of_systems_is_compared_on_the_same_items(run, table, tmp_path):
    from eval import EvalOptions, evaluate
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run
    from pipeline.versus import contest

    recipe = tmp_path / "retrieval.yaml"
    text = RECIPE.format(table=table).split("tiny:")[0].replace("name: mini", "name: retrieval")
    recipe.write_text(text + "memory: {epochs: 1}\n", encoding="utf-8")
    execute(load_recipe(recipe), Run(tmp_path / "retrieval"), ["test"], only=None, start=None, force=False)
    items = [
        {"id": str(n), "messages": [{"role": "user", "content": said}], "reference": "네"}
        for n, said in enumerate(["요즘 상사가 괴롭혀요", "정말 잠이 안 와요"])
    ]
    model = tmp_path / "model"
    evaluate(items, {"sft": ["힘드셨겠어요.", "그러셨군요."]}, EvalOptions(judge=None), None, model / "eval")
    found = contest([str(model), str(run.folder), str(tmp_path / "retrieval")])
    assert list(found.replies) == ["model", "mini", "retrieval"]
    assert found.asked == ["mini", "retrieval"]
    assert all(len(said) == 2 and all(said) for said in found.replies.values())
    assert [set(found.sources[name].values()) for name in ("model", "retrieval")] == [{"model"}, {"knowledge"}]
    assert set(found.sources["mini"].values()) <= {"reviewed", "notice"}


def test_an_emotion_classifier_serves_the_counsellor(run):
    from pipeline.chat.emotion import load_feel

    felt = load_feel(str(run.stage("classify") / "model"))("요즘 상사가 괴롭혀요")
    assert felt.label == "직장"
    assert 0 < felt.score <= 1
