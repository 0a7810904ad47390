import gzip
import json
import sys

import pytest

from kg.errors import MissingExtraError, UsageError
from tools.search.readers import CorpusFile, list_files, read_documents

PAGE = "BT /F1 12 Tf 20 100 Td (Radium glows in the dark.) Tj ET"
PDF_OBJECTS = [
    "<</Type/Catalog/Pages 2 0 R>>",
    "<</Type/Pages/Kids[3 0 R]/Count 1>>",
    "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R"
    "/Resources<</Font<</F1 5 0 R>>>>>>",
    f"<</Length {len(PAGE)}>>stream\n{PAGE}\nendstream",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
]


def _pdf():
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(PDF_OBJECTS, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(PDF_OBJECTS) + 1
    tail = f"trailer<</Root 1 0 R/Size {size}>>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{tail}").encode()


def _read(path):
    problems = []
    documents = list(read_documents(CorpusFile(path, path.name), problems.append))
    return documents, problems


def test_bad_rows_are_named_by_line_and_the_rest_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"id": "a", "title": "A", "text": "first"}).encode(),
        b'{"id": "b", "text": ',
        b'["a list"]',
        b'{"id": "c", "text": ""}',
        b'{"id": "d", "text": 5}',
        b'{"id": "e", "text": "caf\xe9"}',
        b'{"id": {}, "text": "x"}',
        b'{"id": "f", "text": "\\ud800"}',
        b"[" * 200_000,
        b"",
        json.dumps({"_id": 7, "text": "last"}).encode(),
        json.dumps({"text": "no id"}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    documents, problems = _read(path)
    assert [document.id for document in documents] == ["a", "7", "rows.jsonl#12"]
    assert [problem.where for problem in problems] == [f"{path}:{n}" for n in range(2, 10)]
    assert "not UTF-8: byte 0xe9" in problems[4].message


def test_gzip_cut_short_keeps_the_rows_before_the_cut(tmp_path):
    rows = "".join(json.dumps({"id": str(n), "text": f"row {n} {n**9}"}) + "\n" for n in range(999))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(rows.encode())[:-3000])
    documents, problems = _read(path)
    assert documents
    assert len(problems) == 1
    assert "broken gzip data" in problems[0].message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\nna\xefve\n", "not UTF-8: byte 0xef in line 2"),
        ("a.md", b"MZ\x00\x01", "binary: a zero byte at offset 2"),
        ("a.html", b"<script>x()</script>", "has no text"),
        ("b.html", b'<!"<![ ', "not readable HTML"),
        ("a.pdf", b"not a pdf at all", "not a readable PDF"),
        ("a.jsonl.gz", b"not gzip", "broken gzip data"),
    ],
)
def test_an_unreadable_file_is_a_problem_not_a_crash(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    documents, problems = _read(path)
    assert not documents
    assert message in problems[0].message
    assert "\n" not in problems[0].message
    assert problems[0].where.startswith(str(path))


def test_folders_are_walked_in_order_and_other_files_reported(tmp_path):
    for name in ("b/two.md", "a.txt", ".git/hidden.md", "b/picture.png"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Some text.")
    problems = []
    files = list_files([tmp_path / "docs"], problems.append)
    assert [file.name for file in files] == ["docs/a.txt", "docs/b/two.md"]
    assert ["picture.png" in problem.where for problem in problems] == [True]
    (document,) = read_documents(files[1], problems.append)
    assert (document.id, document.title) == ("docs/b/two.md", "two")


def test_a_missing_path_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        list_files([tmp_path / "absent"], print)


def test_a_pdf_is_read_page_by_page(tmp_path):
    pytest.importorskip("pypdf")
    path = tmp_path / "radium.pdf"
    path.write_bytes(_pdf())
    documents, problems = _read(path)
    assert not problems
    assert documents[0].sections[0].text == "Radium glows in the dark."


def test_a_pdf_without_pypdf_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    path = tmp_path / "radium.pdf"
    path.write_bytes(_pdf())
    with pytest.raises(MissingExtraError) as caught:
        _read(path)
    assert "turnwise[pdf]" in caught.value.hint


def test_an_encrypted_pdf_is_a_problem_not_a_crash(tmp_path):
    from pypdf import PdfReader, PdfWriter

    source, path = tmp_path / "plain.pdf", tmp_path / "locked.pdf"
    source.write_bytes(_pdf())
    writer = PdfWriter(clone_from=PdfReader(source))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(path)
    documents, problems = _read(path)
    assert not documents
    assert "not a readable PDF" in problems[0].message


def test_an_encrypted_pdf_without_cryptography_is_a_problem_too(tmp_path, monkeypatch):
    import pypdf
    from pypdf.errors import DependencyError

    def needs_cryptography(*_, **__):
        raise DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf, "PdfReader", needs_cryptography)
    path = tmp_path / "locked.pdf"
    path.write_bytes(_pdf())
    documents, problems = _read(path)
    assert not documents
    assert "encrypted PDF: cryptography" in problems[0].message
