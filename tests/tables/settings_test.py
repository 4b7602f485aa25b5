"""The tables of docs/settings.md parse, and the files of two settings are read in their documented formats.

The rows here are SYNTHETIC: made up in the format that the sources document.
"""

import pathlib
import re
import subprocess

import numpy as np
import pytest

from kd_jax import data
from kd_jax.tables import toml_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/settings.md").read_text()
SETTINGS = ("ecommerce_online_retail", "social_movietweetings", "education_oulad", "health_faers")
VLE = '"code_module","code_presentation","id_student","id_site","date","sum_click"'
DRUG = ("primaryid$caseid$drug_seq$role_cod$drugname$prod_ai$val_vbm$route$dose_vbm$cum_dose_chr$cum_dose_unit$dechal"
        "$rechal$lot_num$exp_dt$nda_num$dose_amt$dose_unit$dose_form$dose_freq")


def call_of(name):
  flag, = (f for f in toml_file.load(name)["flags"] if f.startswith("--data="))
  return flag.removeprefix("--data=")


@pytest.mark.parametrize("name", SETTINGS)
def test_tables_are_whole_and_named_in_the_document(name):
  table = toml_file.load(name)  # parses every flag
  assert [row["row"] for row in table["row"]][:3] == ["pop", table["teacher_row"], table["student_row"]]
  assert any("teacher" in row for row in table["row"])
  assert f"--table={name} " in DOCUMENT


def test_the_rows_of_oulad_are_read(tmp_path):
  rng = np.random.default_rng(0)
  pairs = [(student, site) for student in range(28400, 28440) for site in rng.choice(30, 12, replace=False) + 546600]
  rows = [f'"AAA","2013J","{student}","{site}","{day}","4"' for student, site in pairs for day in (-10, 3)]
  (tmp_path / "oulad").mkdir()
  (tmp_path / "oulad/studentVle.csv").write_text("\n".join([VLE, *rows, ""]))
  call = call_of("education_oulad")
  assert call in DOCUMENT
  dataset = data.load(call, tmp_path, splits=("train", "validation", "test"))
  read = sum(len(x.users) for x in (dataset.train, dataset.validation, dataset.test))
  assert read == len(pairs) and set(dataset.user_ids) == {str(student) for student, _ in pairs}


def test_the_converter_of_faers_takes_reports_and_substances(tmp_path):
  rng = np.random.default_rng(0)
  substances = ["ASPIRIN", 'ACETAMINOPHEN\\CODEINE', "INSULIN GLARGINE", *(f"SUBSTANCE {n}" for n in range(27))]
  (tmp_path / "faers").mkdir()
  expected = []
  for quarter in ("24Q3", "24Q4"):
    rows = []
    for case in range(20):
      report = f"{quarter[:2]}{quarter[3]}{case:04d}1"
      for n, code in enumerate(rng.choice(30, 10, replace=False)):
        rows.append(f"{report}${report[:-1]}${n + 1}$PS$Drug {n}${substances[code]}$1$Oral$$$$U$U$$$$5$MG$Tablet$QD")
        expected.append((report, substances[code]))
      rows.append(f"{report}${report[:-1]}$99$C$Unknown$$2$$$$$$$$$$$$$")  # without a substance
    (tmp_path / f"faers/DRUG{quarter}.txt").write_text("\r\n".join([DRUG, *rows, ""]))
  command, = re.findall(r"^awk .*$", DOCUMENT, re.MULTILINE)
  subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
  lines = (tmp_path / "faers/substances.tsv").read_text().splitlines()
  assert lines[0] == "report\tsubstance"
  assert [tuple(line.split("\t")) for line in lines[1:]] == expected
  dataset = data.load(call_of("health_faers"), tmp_path)
  assert dataset.num_users == 40 and set(dataset.item_ids) <= set(substances)
