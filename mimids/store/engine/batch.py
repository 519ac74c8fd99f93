"""Committing a batch of works, for any engine: all together or, after a failure, all works except the failed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol, cast

import outcome

from mimids.store.engine.transaction import SqlConnection, Tx, Work, WorkTogether

Faults = Callable[[str], None]
AfterCommit = list[Callable[[], None]]
Answers = list[outcome.Outcome[Any]]


class Transactions(Protocol):
    """Transactions on the connection that writes, and the meaning of its errors."""

    @property
    def connection(self) -> SqlConnection:
        """The connection that runs the statements of the transaction."""

    def begin(self) -> None:
        """Begin a transaction; raise if the database cannot be written now."""

    def commit(self) -> None:
        """End the transaction; return once it is durable."""

    def undo(self) -> None:
        """Roll back the transaction, if it is still open."""

    def is_open(self) -> bool:
        """Tell whether the transaction is still open: a statement of a work, or a failing disk, may have ended it."""

    def refusal(self, error: Exception) -> Exception:
        """Return the error that the caller is to see: `StorageUnavailable` if the storage is at fault."""

    def refuses_batch(self, error: Exception) -> bool:
        """Tell whether to refuse the whole batch: running its works one by one would fail too, or is not allowed."""

    def ends_writing(self, error: Exception) -> bool:
        """Tell whether nothing more must be written after this error."""


Attempt = Callable[[Sequence[Work[Any]], Transactions, AfterCommit], Answers]


def commit(works: Sequence[Work[Any]], faults: Faults, transactions: Transactions) -> list[outcome.Outcome[Any]]:
    """Run works in order and return their answers once everything that succeeded is durable.

    Nearly always no work raises, so the first attempt runs all works together, without the cost of a savepoint for
    each. If one raised, the second attempt runs each under a savepoint. If the transaction itself failed (no room for
    one of the works, a deferred constraint), each work gets a transaction of its own, so that a work that cannot be
    committed does not fail the other works. The calls that wait for the commit (`Tx.after_commit`) are made last.
    """
    after_commit: AfterCommit = []
    answers = _run_batch(works, faults, transactions, after_commit)
    _finish(after_commit, faults)
    return answers


def commit_beside_others(
    works: Sequence[Work[Any]], faults: Faults, transactions: Transactions
) -> list[outcome.Outcome[Any]]:
    """Commit works that named their locks, in one attempt; raise if this fails: then `commit` runs them alone."""
    after_commit: AfterCommit = []
    answers = _transact(works, _run_each, faults, transactions, after_commit)
    _finish(after_commit, faults)
    return answers


def _finish(after_commit: AfterCommit, faults: Faults) -> None:
    faults("after_commit")
    for call in after_commit:
        call()


def _run_batch(
    works: Sequence[Work[Any]], faults: Faults, transactions: Transactions, after_commit: AfterCommit
) -> list[outcome.Outcome[Any]]:
    for attempt in (_run_together, _run_under_savepoints) if len(works) > 1 else ():
        try:
            return _transact(works, attempt, faults, transactions, after_commit)
        except Exception as error:  # the next attempt raises the error again, and finds its work
            if transactions.refuses_batch(error):
                return [outcome.Error(transactions.refusal(error)) for _ in works]
    answers: list[outcome.Outcome[Any]] = []
    for work in works:
        try:
            answers += _transact([work], _run_each, faults, transactions, after_commit)
        except Exception as error:
            answers.append(outcome.Error(transactions.refusal(error)))
            if transactions.ends_writing(error):
                return answers + [outcome.Error(transactions.refusal(error)) for _ in works[len(answers) :]]
    return answers


def _transact(
    works: Sequence[Work[Any]],
    attempt: Attempt,
    faults: Faults,
    transactions: Transactions,
    after_commit: AfterCommit,
) -> list[outcome.Outcome[Any]]:
    """Run works in one transaction; if this raises, none of their changes remain.

    The calls to make after the commit are added to `after_commit`.
    """
    calls: AfterCommit = []
    transactions.begin()
    try:
        answers = attempt(works, transactions, calls)
        faults("before_commit")
        transactions.commit()
    except BaseException:
        transactions.undo()
        raise
    after_commit += calls
    return answers


def _run_together(works: Sequence[Work[Any]], transactions: Transactions, after_commit: AfterCommit) -> Answers:
    """Run works; those that may run together and follow one another are run by one call."""
    answers: Answers = []
    for run, same in groupby(works, lambda work: work.run if isinstance(work, WorkTogether) else None):
        if run is None:
            answers += _run_each(tuple(same), transactions, after_commit)
        else:
            items = [cast("WorkTogether[Any, Any]", work).item for work in same]
            answers += [outcome.Value(value) for value in run(Tx(transactions.connection, after_commit), items)]
            _check_open(transactions)
    return answers


def _run_each(works: Sequence[Work[Any]], transactions: Transactions, after_commit: AfterCommit) -> Answers:
    answers: Answers = []
    for work in works:
        answers.append(outcome.Value(work(Tx(transactions.connection, after_commit))))
        _check_open(transactions)
    return answers


def _run_under_savepoints(works: Sequence[Work[Any]], transactions: Transactions, after_commit: AfterCommit) -> Answers:
    return [_run_under_savepoint(work, transactions, after_commit) for work in works]


def _run_under_savepoint(
    work: Work[Any], transactions: Transactions, after_commit: AfterCommit
) -> outcome.Outcome[Any]:
    connection = transactions.connection
    connection.execute("SAVEPOINT work")
    calls: AfterCommit = []
    try:
        answer: outcome.Outcome[Any] = outcome.Value(work(Tx(connection, calls)))
        after_commit += calls
    except Exception as error:  # raised again at the caller of Store.write
        _check_open(transactions)
        connection.execute("ROLLBACK TO work")
        answer = outcome.Error(transactions.refusal(error))
    _check_open(transactions)
    connection.execute("RELEASE work")
    return answer


def _check_open(transactions: Transactions) -> None:
    """Raise if the transaction has already ended: every later statement would be committed by itself."""
    if not transactions.is_open():
        raise TransactionEnded("the transaction ended before its commit")


class TransactionEnded(Exception):
    """A work ended the transaction that it ran in."""
