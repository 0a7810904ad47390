"""The official scorers once more, written from their definitions in another way than `eval.metrics`.

Characters are looked at one by one, bags of tokens are lists from which matches are taken out, and
nothing is imported from the package.
"""

import math
import re
import unicodedata

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def squad_normal(text):
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    for article in ("a", "an", "the"):
        kept = re.sub(rf"\b{article}\b", " ", kept)
    return " ".join(kept.split())


def trivia_normal(text):
    kept = text.replace("_", " ").lower()
    kept = "".join(" " if c in PUNCTUATION + "‘’´`" else c for c in kept)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def nq_normal(text):
    return squad_normal(unicodedata.normalize("NFD", text))


def igpo_normal(text):
    return " ".join("".join(" " if c in PUNCTUATION else c for c in text.lower()).split())


def plain_prf(predicted, gold):
    left, same = list(gold), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            same += 1
    if same == 0:
        return 0.0, 0.0, 0.0
    p, r = same / len(predicted), same / len(gold)
    return p, r, 2 * p * r / (p + r)


def squad1(prediction, golds):
    pairs = [(squad_normal(prediction), squad_normal(g)) for g in golds]
    return max(a == b for a, b in pairs), max(plain_prf(a.split(), b.split())[2] for a, b in pairs)


def squad2(prediction, golds):
    golds = [g for g in golds if squad_normal(g)] or [""]
    best_em, best_f1 = 0, 0.0
    for gold in golds:
        ours, theirs = squad_normal(prediction).split(), squad_normal(gold).split()
        both = bool(ours) and bool(theirs)
        f1 = plain_prf(ours, theirs)[2] if both else float(ours == theirs)
        best_em = max(best_em, int(squad_normal(prediction) == squad_normal(gold)))
        best_f1 = max(best_f1, f1)
    return best_em, best_f1


def hotpot_one(prediction, gold):
    ours, theirs = squad_normal(prediction), squad_normal(gold)
    closed = {"yes", "no", "noanswer"}
    if (ours in closed or theirs in closed) and ours != theirs:
        return 0.0, 0.0, 0.0, 0.0
    return (float(ours == theirs), *plain_prf(ours.split(), theirs.split()))


def two_wiki(prediction, golds):
    found = [hotpot_one(prediction, g) for g in golds]
    return tuple(max(column) for column in zip(*found, strict=True))  # em, p, r, f1


def musique(prediction, golds):
    best_em, best_f1 = 0, 0.0
    for gold in golds:
        ours, theirs = squad_normal(prediction).split(), squad_normal(gold).split()
        both = bool(ours) and bool(theirs)
        f1 = plain_prf(ours, theirs)[2] if both else float(ours == theirs)
        best_em, best_f1 = max(best_em, int(ours == theirs)), max(best_f1, f1)
    return best_em, best_f1


def trivia(prediction, golds):
    pairs = [(trivia_normal(prediction), trivia_normal(g)) for g in golds]
    return max(a == b for a, b in pairs), max(plain_prf(a.split(), b.split())[2] for a, b in pairs)


def nq(prediction, golds):
    return any(nq_normal(prediction) == nq_normal(g) for g in golds)


def igpo(prediction, golds):
    em, f1 = 0, 0.0
    for gold in golds:
        ours, theirs = set(igpo_normal(prediction).split()), set(igpo_normal(gold).split())
        same = sum(token in theirs for token in ours)
        if same:
            p, r = same / len(ours), same / len(theirs)
            f1 = max(f1, 2 * p * r / (p + r))
        em = max(em, int(igpo_normal(prediction) == igpo_normal(gold)))
    return em, f1


def substring_em(prediction, golds):
    return any(squad_normal(g) in squad_normal(prediction) for g in golds)


def cover(prediction, golds, normal=squad_normal):
    """Whether the words of a gold answer stand one behind the other somewhere in the prediction."""
    ours = normal(prediction).split()
    for gold in golds:
        theirs = normal(gold).split()
        if theirs and theirs in [ours[at : at + len(theirs)] for at in range(len(ours))]:
            return True
    return False


def squad2_cover(prediction, golds):
    if any(squad_normal(gold) for gold in golds):
        return cover(prediction, golds)
    return squad_normal(prediction) == ""


def hotpot_support(predicted, gold):
    ours, theirs = {tuple(x) for x in predicted}, {tuple(x) for x in gold}
    right = len([x for x in ours if x in theirs])
    p = right / len(ours) if ours else 0.0
    r = right / len(theirs) if theirs else 0.0
    f1 = 2 * p * r / (p + r) if p + r > 0 else 0.0
    wrong = len(ours) - right + len(theirs) - right
    return float(wrong == 0), p, r, f1


def musique_support(predicted, gold):
    """Exact match and F1 of numbers of paragraphs; both empty is right."""
    if len(predicted) == len(gold) == 0:
        return 1.0, 1.0
    em, _, _, f1 = hotpot_support([(i,) for i in predicted], [(i,) for i in gold])
    return em, f1


def two_wiki_support(predicted, gold):
    """Each spelling of a title counts, and matches whatever its case."""

    def spelled(facts):
        return [[title.lower(), number] for title, number in {tuple(fact) for fact in facts}]

    ours, theirs = spelled(predicted), spelled(gold)
    right = [fact for fact in ours if fact in theirs]
    wrong = [fact for fact in ours if fact not in theirs]
    missed = [fact for fact in theirs if fact not in ours]
    p = len(right) / (len(right) + len(wrong)) if ours else 0.0
    r = len(right) / (len(right) + len(missed)) if right or missed else 0.0
    return float(not wrong and not missed), p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0


def two_wiki_evidence(predicted, gold):
    """Each distinct predicted triple that is a spelling of some gold one is a match; the matches are
    counted over the predicted for precision and over the gold for recall, which may so exceed 1."""

    def flat(triple):
        return "|".join(
            " ".join("".join(c for c in part.lower() if c not in PUNCTUATION).split())
            for part in triple
        )

    ours = sorted({flat(triple) for triple in predicted})
    spelled = [flat(triple) for spellings in gold for triple in spellings]
    matches = sum(one in spelled for one in ours)
    p = matches / len(ours) if ours else 0.0
    r = matches / len(gold) if gold else 0.0
    em = float(matches == len(ours) and matches == len(gold))
    return em, p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0


def joint_of(*parts):
    """Products of the (em, precision, recall) of each part, and the F1 of the products."""
    em = p = r = 1.0
    for part in parts:
        em, p, r = em * part[0], p * part[1], r * part[2]
    return em, p, r, (2 * p * r / (p + r) if p + r > 0 else 0.0)


def retrieval(ranked, relevant, k):
    """Hit and recall among the first k, and 1 over the rank of the first relevant one, all of them."""
    first = ranked[:k]
    found = [d for d in relevant if d in first]
    ranks = [i for i, d in enumerate(ranked) if d in relevant]
    return float(len(found) > 0), len(found) / len(relevant), 1 / (ranks[0] + 1) if ranks else 0.0


def ndcg(ranked, relevant, k):
    gain = sum(1 / math.log2(i + 2) for i, d in enumerate(ranked[:k]) if d in relevant)
    best = sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant))))
    return gain / best


def pieces_of(text):
    """Pieces of a list and the separator behind each, read character by character."""
    pieces, piece, word = [], "", ""
    for at, c in enumerate(text + "\0"):
        inside = c == "," and text[at - 1 : at].isdecimal() and text[at + 1 : at + 4].isdecimal()
        if inside and len(text) >= at + 4 and not text[at + 4 : at + 5].isdecimal():
            piece, word = piece + word + c, ""
            continue
        if c.isalnum() or c == "_":
            word += c
            continue
        if word == "and":
            pieces.append((piece, "and"))
            piece = ""
        else:
            piece += word
        word = ""
        if c in ",;\n":
            pieces.append((piece, c))
            piece = ""
        elif c != "\0":
            piece += c
    return [*pieces, (piece, "")]


def entities_of(text, golds, by=squad_normal):
    """Gold entities first, the longest at each place, by recursion; the rest piece by piece."""
    most = max(len(pieces_of(gold)) for gold in golds)
    normal = {by(gold) for gold in golds if by(gold)}

    def told(pieces):
        if not pieces:
            return []
        for size in reversed(range(1, min(most, len(pieces)) + 1)):
            inner = "".join(p + s for p, s in pieces[: size - 1]) + pieces[size - 1][0]
            if by(inner) in normal:
                return [by(inner), *told(pieces[size:])]
        return [by(pieces[0][0]), *told(pieces[1:])]

    return [one for one in told(pieces_of(text)) if one]


def entity_set(prediction, golds, normal=squad_normal):
    """Hits@1, precision, recall and F1 of a list of entities."""
    wanted = []
    for gold in golds:
        if normal(gold) and normal(gold) not in wanted:
            wanted.append(normal(gold))
    if normal(prediction) in wanted:
        said = [normal(prediction)]
    else:
        said = entities_of(prediction, golds, normal)
    hit = float(bool(said) and said[0] in wanted)
    distinct = list(dict.fromkeys(said))
    same = len([s for s in distinct if s in wanted])
    p = same / len(distinct) if distinct else 0.0
    r = same / len(wanted) if wanted else 0.0
    return hit, p, r, 2 * p * r / (p + r) if same else 0.0


MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
DIGITS = "0123456789"


def spans(text):
    """Where the numbers of a text begin and end: no word before them, as many digits as there are."""
    at = 0
    while at < len(text):
        begin, end = at, at
        if text[end] in "-+−–":
            end += 1
        if text[end : end + 1] == ".":
            end += 1
        digits = text[end : end + 1]
        before = text[:begin][-2:]
        in_word = before[-1:].isalnum() or before[-1:] in ("_", ".")
        behind_hyphen = len(before) == 2 and before[0].isalpha() and before[1] in "-−–"
        if not digits or digits not in DIGITS or in_word or behind_hyphen:
            at += 1
            continue
        while end < len(text) and text[end] in DIGITS + ".,":
            end += 1
        while text[end - 1] in ".,":
            end -= 1
        power = end + 1
        if text[end : end + 1] in ("e", "E"):
            power += text[power : power + 1] in ("-", "+", "−", "–")
            while power < len(text) and text[power] in DIGITS:
                power, end = power + 1, power + 1
        yield begin, end
        at = end


def read(token):
    """Value of a number, or None for one that could be read in two ways."""
    plain = token.replace("−", "-").replace("–", "-")
    mantissa = plain.lower().split("e")[0].lstrip("+-")
    whole, *rest = mantissa.split(".")
    groups = whole.split(",")
    grouped = len(groups) == 1 or (
        1 <= len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    )
    if len(rest) > 1 or "," in "".join(rest) or not grouped:
        return None
    value = float(plain.replace(",", ""))
    return value if abs(value) < 1e100 else None


def values_of(text):
    """Numbers as they stand among words and signs: None for what could be something else."""
    found = []
    for begin, end in spans(text):
        before, after = text[:begin], text[end:]
        bracket = before[-1:] in ("(", "{")
        if before[: len(before) - bracket].endswith("^"):
            continue
        value, word, spaced = read(text[begin:end]), "", before[-1:].isspace()
        for c in reversed(before.rstrip()):
            if not c.isalnum() and c != "_":
                break
            word = c + word
        if spaced and word.lower() in ("minus", "negative"):
            value = None if value is None or text[begin] not in DIGITS else -value
        dash = before.rstrip()[-1:]
        power = after[:1] == "^" or (after[:1].isspace() and after[1:2] == "^")
        more = after[:1] == "_" or (after[:1].isalpha() and after[1:2].isdecimal())
        doubt = power or more or dash == "—" or (spaced and dash != "" and dash in "-−–")
        found.append(None if doubt else value)
    return found


def number_of_gold(gold):
    found = list(spans(gold.strip()))
    return read(gold.strip()) if found == [(0, len(gold.strip()))] else None


def number(prediction, golds):
    """Exact match and F1: one number, half a unit from a gold one at most; texts as SQuAD's."""
    said = values_of(prediction)
    numeric = [number_of_gold(gold) for gold in golds if number_of_gold(gold) is not None]
    texts = [gold for gold in golds if number_of_gold(gold) is None]
    right = len(said) == 1 and said[0] is not None and near(said[0], numeric)
    other = squad1(prediction, texts) if texts else (0, 0.0)
    return max(float(right), other[0]), max(float(right), other[1])


def near(value, golds):
    return min((abs(value - gold) for gold in golds), default=math.inf) < 0.5 + 1e-6


def number_cover(prediction, golds):
    texts = [gold for gold in golds if number_of_gold(gold) is None]
    numeric = [number_of_gold(gold) for gold in golds if number_of_gold(gold) is not None]
    said = [value for value in values_of(prediction) if value is not None]
    return any(near(value, numeric) for value in said) or cover(prediction, texts)


def qald_normal(text):
    """Dates and numbers word by word, then SQuAD's."""
    words = []
    for word in text.split():
        parts = word.strip(",;").split("-")
        dated = [len(part) for part in parts] == [4, 2, 2] and all(p.isdigit() for p in parts)
        if dated and 1 <= int(parts[1]) <= 12 and 1 <= int(parts[2]) <= 31:
            word = f"{MONTHS[int(parts[1]) - 1]} {int(parts[2])} {int(parts[0])}"
        words += word.split()
    for at in range(len(words) - 2):
        day, month, year = words[at], words[at + 1].rstrip(",").lower(), words[at + 2]
        four = year.rstrip(",;.")
        day = day[:-2] if day[:-2].isdigit() and day[-2:] in ("st", "nd", "rd", "th") else day
        if (
            day.isdigit()
            and 1 <= int(day) <= 31
            and month in MONTHS
            and len(four) == 4
            and four.isdigit()
        ):
            words[at], words[at + 1] = month, day
    for at in range(len(words) - 2):
        day, year = words[at + 1].rstrip(","), words[at + 2].rstrip(",;.")
        new_year = words[at].lower() == "january" and day in ("1", "01", "1st", "01st")
        if new_year and len(year) == 4 and year.isdigit():
            words[at] = words[at + 1] = ""
    kept = " ".join(filter(None, words))
    if kept.endswith(")") and "(" in kept[1:] and ")" not in kept[kept.rindex("(") : -1]:
        kept = kept[: kept.rindex("(")]
    out, last = "", 0
    for begin, end in spans(kept):
        value, said = read(kept[begin:end]), kept[begin:end]
        if value is not None:
            whole = str(int(value)) if value == int(value) else repr(value)
            said = whole.replace("-", "minus ").replace(".", "point")
        out, last = out + kept[last:begin] + said, end
    return squad_normal(out + kept[last:])
