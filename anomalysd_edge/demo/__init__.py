"""The demo data set: five products rendered in code, with defects whose masks are exact."""
