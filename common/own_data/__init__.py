"""A data set of one's own out of a table of questions and a folder of pictures."""

from common.own_data.making import MakeOptions, make
from common.own_data.table import Problems, Table, TableRow, read_table

__all__ = ["MakeOptions", "Problems", "Table", "TableRow", "make", "read_table"]
