"""PyPI `lm-eval` with `local-completions`: a task of its own, since tasks come from afar; both ways of asking, likelihood and text."""

import json
import os
import tempfile

os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OPENAI_API_KEY", "unused")

import lm_eval
from lm_eval.tasks import TaskManager

from checks import BASE, MODEL, check

CAPITALS = [("France", "Paris", "Tokyo"), ("Japan", "Tokyo", "Rome"), ("Italy", "Rome", "Paris"), ("Spain", "Madrid", "Oslo")]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "The capital of {{{{country}}}} is"
"""
CHOICE = """
task: capitals_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
task: capitals_text
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_punctuation: true}]
"""
ARGUMENTS = f"model={MODEL},base_url={BASE}/v1/completions,num_concurrent=2,max_retries=1,max_length=1024,tokenizer_backend=remote"


def score(task, text, metric, batch):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder
        data = os.path.join(folder, "capitals.jsonl")
        with open(data, "w") as out:
            for country, right, wrong in CAPITALS:
                out.write(json.dumps({"country": country, "answer": right, "choices": [right, wrong]}) + "\n")
        with open(os.path.join(folder, f"{task}.yaml"), "w") as out:
            out.write(COMMON.format(data=data) + text)
        manager = TaskManager(include_path=folder, include_defaults=False)
        results = lm_eval.simple_evaluate(
            model="local-completions", model_args=ARGUMENTS, tasks=[task], task_manager=manager, batch_size=batch, bootstrap_iters=0
        )
    return results["results"][task][f"{metric},none"]


@check
def likelihood():
    # It asks for echoed prompts with the log probabilities of their tokens.
    assert score("capitals_choice", CHOICE, "acc", 1) >= 0.75


@check
def likelihood_in_batches():
    assert score("capitals_choice", CHOICE, "acc", 4) >= 0.75


@check
def text():
    assert score("capitals_text", TEXT, "exact_match", 1) >= 0
