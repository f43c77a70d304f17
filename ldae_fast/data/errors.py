"""The two ways in which data can be wrong: the whole set, or one image of it."""


class DataError(Exception):
    """A problem with a data set that its user can mend, told in one sentence."""


class BadImage(Exception):
    """One image that cannot be read. `name` says which, `reason` says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason
