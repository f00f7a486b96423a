"""Progress says what is running and how long is left."""

from bench.progress import LOG_EVERY_S, MAX_ROWS, ProgressBar


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def bar(*, is_terminal: bool) -> tuple[ProgressBar, Clock, list[str]]:
    written: list[str] = []
    clock = Clock()
    return ProgressBar(written.append, is_terminal=is_terminal, clock=clock), clock, written


def test_time_left_is_elapsed_time_scaled_to_what_is_still_to_do():
    show, clock, written = bar(is_terminal=True)
    show("train", 0, 100)
    assert "estimating" in written[-1]
    clock.now += 30
    show("train", 25, 100, "topk")
    assert "train [######" in written[-1] and "25% 1m30s left | topk" in written[-1]


def test_what_was_done_before_the_stage_began_does_not_count_as_speed():
    show, clock, written = bar(is_terminal=True)
    show("train", 50, 100)  # resumed
    clock.now += 10
    show("train", 75, 100)
    assert "75% 10s left" in written[-1]


def test_a_log_gets_a_line_now_and_then_and_always_the_first_and_last():
    show, clock, written = bar(is_terminal=False)
    for i in range(100):
        show("train", i, 100)
        clock.now += LOG_EVERY_S / 10
    show("train", 100, 100)
    assert 10 <= len(written) <= 12
    assert "100% took" in written[-1]
    assert all(line.endswith("\n") and "\r" not in line for line in written)


def test_a_new_stage_starts_its_own_clock():
    show, clock, written = bar(is_terminal=False)
    show("train", 100, 100)
    clock.now += 1000
    show("evaluate", 0, 10)
    clock.now += 20
    show("evaluate", 5, 10)
    assert "evaluate" in written[-1] and "20s left" in written[-1]


def test_a_stage_without_work_is_over_at_once():
    show, _, written = bar(is_terminal=False)
    show("evaluate", 0, 0)
    assert "100% took 0s" in written[-1]


def test_the_end_of_a_stage_is_told_once():
    show, _, written = bar(is_terminal=False)
    for _ in range(3):
        show("evaluate", 4, 4)
    assert len(written) == 1


def test_a_terminal_shows_a_row_per_part_and_draws_over_it():
    show, _, written = bar(is_terminal=True)
    show("train", 1, 10, "2 SAEs", ["topk: L0 8", "relu: L0 9"])
    head, *rows = written[-1].split("\n")
    assert head.startswith("\r\x1b[Jtrain [") and head.endswith("2 SAEs")
    assert rows == ["  topk: L0 8", "  relu: L0 9\x1b[2A"]
    show("train", 10, 10, "2 SAEs", ["topk: L0 8", "relu: L0 9"])
    assert written[-1].endswith("  relu: L0 9\n")


def test_too_many_rows_are_counted_on_a_terminal_and_all_told_in_a_log():
    rows = [f"sae {i}" for i in range(MAX_ROWS + 3)]
    show, _, written = bar(is_terminal=True)
    show("train", 1, 10, "", rows)
    assert written[-1].endswith(f"\n  and 3 more\x1b[{MAX_ROWS + 1}A")
    show, _, written = bar(is_terminal=False)
    show("train", 1, 10, "", rows)
    assert written[-1].splitlines()[1:] == [f"  {row}" for row in rows]
