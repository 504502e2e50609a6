"""asv: valuation and folding, on the workloads that everything else measures."""

import sys
from pathlib import Path

# asv imports this folder alone; the workloads stand beside it.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import twins
from benchmarks.workloads import workload
from copyrisk.risk import fold_all


class Valuation:
    """One pass over a book."""

    params = ("small", "million", "million_unnetted")
    param_names = ("workload",)

    def setup(self, name: str) -> None:
        """Build and check once."""
        work = workload(name)
        self.run = twins.kernel(work)
        twins.check(twins.numpy_best(work)(), self.run())

    def time_value_accounts(self, name: str) -> None:
        """The kernel."""
        self.run()


class Folding:
    """Orders to legs."""

    def setup(self) -> None:
        """Build once."""
        work = workload("small")
        self.accounts, self.orders, self.instruments = work.accounts.copy(), work.orders.copy(), work.instruments

    def time_fold_all(self) -> None:
        """All accounts from scratch."""
        fold_all(self.accounts, self.orders, self.instruments)
