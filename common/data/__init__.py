"""Questions, answers and data sets: readers, the official metric, the tokenizer."""

from common.data.annotations import (
    AnswerVocabulary,
    Example,
    QuestionId,
    answer_digest,
    read_lxmert_json,
    read_official,
)
from common.data.answer_scores import answer_score, normalise_answer, soft_scores, strip_punctuation
from common.data.command import main
from common.data.dataset_table import DATASETS, MINIVAL_ROWS
from common.data.datasets import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    check_disjoint,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
    subset_by_images,
)
from common.data.tokenizer import (
    MAX_TOKENS,
    Tokenizer,
    has_vocabulary,
    packaged_bert_folder,
    small_vocabulary,
)
from common.data.vqa_dataset import VQABatch, VQADataset, question_digest
from common.data.vqa_metric import (
    Scores,
    majority_answer_baseline,
    question_only_baseline,
    score,
    write_predictions,
)

__all__ = [
    "DATASETS",
    "FAST_IMAGES",
    "MAX_TOKENS",
    "MINIVAL_ROWS",
    "TINY_IMAGES",
    "AnswerVocabulary",
    "Dataset",
    "Example",
    "QuestionId",
    "Scores",
    "Tokenizer",
    "VQABatch",
    "VQADataset",
    "answer_digest",
    "answer_score",
    "check_disjoint",
    "has_vocabulary",
    "load_split",
    "main",
    "majority_answer_baseline",
    "normalise_answer",
    "open_features",
    "packaged_bert_folder",
    "question_digest",
    "question_only_baseline",
    "read_lxmert_json",
    "read_official",
    "resolve_dataset",
    "score",
    "small_vocabulary",
    "soft_scores",
    "split_holdout",
    "strip_punctuation",
    "subset_by_images",
    "write_predictions",
]
