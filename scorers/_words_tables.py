"""Tables behind `_words_english.py`: classes of characters, and the pieces split in their own way.

They state the facts that spaCy 3.8's rules for English consist of (MIT licence), in a form of their
own: ranges of code points, and contractions as heads and endings. Checked against spaCy on the
777,471 different pieces of 150 MB of real text of many kinds: the words were the same for each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def characters(ranges: str) -> str:
    """ "41-43 7a" is "ABCz": hexadecimal code points and ranges of them."""
    bounds = [part.partition("-") for part in ranges.split()]
    pairs = [(int(low, 16), int(high or low, 16)) for low, _, high in bounds]
    return "".join(chr(c) for low, high in pairs for c in range(low, high + 1))


#: letters with two cases: Latin, Greek and the Cyrillic of five languages
_CASED = (
    "41-5a 61-7a c0-d6 d8-f6 f8-1bf 1c4-2af 386 388-38a 38c 38e-38f 391-3a9 3ac-3af 3b1-3c9"
    " 3cc-3ce 400-401 403-40a 40c-40d 410-451 453-45a 45c-45d 490-491 496-497 4a2-4a3 4ae-4af"
    " 4ba-4bb 4d8-4d9 4e8-4e9 1d00-1d25 1d6b-1d77 1d79-1d9a 1e00-1eff 2c60-2c7b 2c7e-2c7f a722-a76f"
    " a771-a787 a78b-a78e a790-a7b9 a7fa ab30-ab5a ab60-ab64 ff21-ff3a ff41-ff5a"
)
#: scripts without case; their characters count as lower and as upper
_UNCASED = (
    "591-5f4 620-64a 66e-6d5 6e5-6ff 750-77f 8a0-8bd 900-9ff b80-cff d80-dff 1100-137f 2e80-2fdf"
    " 2ff0-30ff 31c0-31ef 3200-4dbf 4e00-9fff ac00-d7af f900-faff fb1d-fbb1 fbd3-fd3d fd50-fdc7"
    " fdf0-fdfb fe30-fe4f fe70-fefc 1ee00-1eebb 1f200-1f2ff 20000-2a6df 2a700-2ebef 2f800-2fa1f"
)
#: symbols (category So) that the rules do not know: most are newer than they are
_NEWER = (
    "166d 2b97 2bc9 2bff 2e50-2e51 32ff fd40-fd4f fdcf fdfe-fdff 1019c 11fd5-11fdc 11fe1-11ff1"
    " 1cc00-1ccff 1cf50-1cfc3 1d1e9-1d1ea 1e14f 1ed2e 1f10d-1f10f 1f16c-1f16f 1f1ad 1f6d5-1f6df"
    " 1f6fa-1f6fc 1f774-1f77f 1f7d9-1f7ff 1f8b0-1f8ff 1f90c-1f90f 1f93f 1f971-1f972 1f977-1f979"
    " 1f97b 1f9a3-1f9af 1f9ba-1f9bf 1f9c3-1f9cf 1fa00-1fa5f 1fa6e-1fbff"
)

UNCASED = characters(_UNCASED)
ALPHA = characters(_CASED) + UNCASED
LOWER = "".join(c for c in characters(_CASED) if c.islower()) + "\u0294" + UNCASED
UPPER = "".join(c for c in characters(_CASED) if c.isupper()) + UNCASED
_ODD = frozenset(characters(_NEWER))
ICONS = "".join(
    c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "So" and c not in _ODD
)

QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s"
    " km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см"
    " см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم²"
    " كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب اكواب"
)
UNITS = _UNITS.split()

# -- pieces with a split of their own ----------------------------------------------------------

_WHOLE = r"""
' '' \") \t \n <space> — C++
a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü.
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan.
Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr.
Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. D.C.
a.m. p.m. Adm. Bros. co. Co. Corp. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md.
Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.
and/or w/o ma'am Ma'am o'clock O'clock em 'em ll 'll nuff 'nuff 'd 's 'S ‘s ‘S 're
'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout
doin Doin doin' Doin' goin Goin goin' Goin' nothin Nothin nothin' Nothin' nuthin Nuthin nuthin'
Nuthin' ol Ol ol' Ol' somethin Somethin somethin' Somethin' lovin Lovin lovin' Lovin' havin Havin
havin' Havin'
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-;
:( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p
:-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD
XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0
o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ)
¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""
_CUT = """
y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta
Got|ta let|'s Let|'s c'm|on C'm|on °|c|. °|f|. °|k|. °|C|. °|F|. °|K|.
"""
_ASKING = "who what when where why how there"
_ANY = "'ll 'll|'ve 'd 'd|'ve"
#: heads, in lower case and with a capital, and their endings, with and without apostrophes
_CONTRACTED = [
    ("i", f"'m 'm|a {_ANY} 've"),
    ("you we they", f"{_ANY} 've 're"),
    ("he she it", f"{_ANY} 's"),
    (_ASKING, f"{_ANY} 's 're 've"),
    ("that this", f"{_ANY} 's"),
    ("these those", f"{_ANY} 're 've"),
    ("ca could do does did had may might must need ought sha should wo would", "n't n't|'ve"),
    ("could might must should would", "'ve"),
    ("ai are is was were have has dare", "n't"),
    (" ".join(map(str, range(1, 13))), "am a.m. pm p.m."),
]
#: words that look like a contraction without its apostrophe
_WORDS = ["ill", "its", "hell", "shell", "shed", "were", "well", "whore"]


def _contracted() -> Iterable[str]:
    for heads, endings in _CONTRACTED:
        for head in heads.split():
            for ending in endings.split():
                for first in (head, head.title()):
                    yield f"{first}|{ending}"
                    yield f"{first}|{ending}".replace("'", "")


def special_pieces() -> dict[str, tuple[str, ...]]:
    """Piece -> its words."""
    cut = [*_CUT.split(), *_contracted()]
    found = {c.replace("|", ""): tuple(c.split("|")) for c in cut}
    for word in _WORDS:
        found.pop(word, None)
        found.pop(word.title(), None)
    found |= {w: (w,) for w in _WHOLE.split()}
    curly = {k.replace("'", "’"): tuple(w.replace("'", "’") for w in v) for k, v in found.items()}
    return found | curly


# -- what datatrove counts as a mark, and what ends a sentence ---------------------------------

_TERMINAL = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e"
    " 1735-1736 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e"
    " 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7"
    " a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f"
    " ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6"
    " 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7"
    " 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8"
    " 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"
)
#: of these, what spaCy's splitter into sentences does not know
_NOT_IN_SENTENCES = (
    "61d-61e 837 839 83d-83e 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944"
    " 11946 11ef7-11ef8 11f43-11f44 16e98"
)
_SYMBOLS = (
    "0-8 b-1f 22-2d 2f 3a-3e 40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba"
    " 3001 3008-300d 3010-3011 ff05 ff08-ff09 ff0c ff11 ff1a-ff1b ff5e"
)
#: marks at the end of a line that is a sentence
TERMINAL = frozenset(characters(_TERMINAL))
SENTENCE_ENDS = TERMINAL - frozenset(characters(_NOT_IN_SENTENCES))
SYMBOLS = TERMINAL | frozenset(characters(_SYMBOLS))
