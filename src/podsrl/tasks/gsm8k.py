"""GSM8K: grade-school mathematics in words (Cobbe et al., arXiv 2110.14168)."""

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.record import Record, answer_field, checked_text, text_field
from podsrl.tasks.sources import hub_records, table_rows

REPOSITORY, CONFIG = "openai/gsm8k", "main"


def gsm8k(
    *,
    data: str | None = None,
    seed: int = 0,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
) -> Task:
    """Return GSM8K: 7,473 train and 1,319 test questions whose answers are whole numbers.

    From the hub, or from local files with `data`. The gold answer is what follows ####. The
    splits are the published ones, whatever the seed.
    """
    del seed  # the order of a published split is the trainer's business

    def to_row(record: Record) -> Row:
        answer = final_answer(answer_field(record, "answer"))
        checked_text(answer, f"{record.place}: answer after ####")
        return make_row(text_field(record, "question"), answer, tags=answer_format == "tags")

    def rows(split: str) -> list[Row]:
        return table_rows(split, data=data, hub=_from_hub, to_row=to_row)

    return make_task("gsm8k", rows, answer_format=answer_format, max_new_tokens=max_new_tokens)


def final_answer(solution: str) -> str:
    """Return what follows the last ####, without thousands separators.

    Example: `final_answer("2+1000=1002 #### 1,002") == "1002"`.
    """
    return solution.rpartition("####")[2].strip().replace(",", "")


def _from_hub(split: str) -> list[Record]:
    return hub_records(REPOSITORY, config=CONFIG, split=split)
