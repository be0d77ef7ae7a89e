"""What tests give a folder of results to do, in the place of a verb."""


class WhileSampling:
    """`work(case, folder)` fills the folder and says what case.json will: all of it in the second of the three steps."""

    def __init__(self, work):
        self.work = work

    def read(self, case):
        return case

    def sample(self, read, new):
        return self.work(read, new)

    def write(self, sampled, new):
        return sampled
