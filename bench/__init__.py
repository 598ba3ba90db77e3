"""The budgets of ``docs/architecture.md``, measured. A bad figure fails nothing: it stands beside its budget."""
