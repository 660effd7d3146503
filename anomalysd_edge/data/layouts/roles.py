"""What folder names mean in inspection: good, bad and mask folders in the words and languages that people use."""

from __future__ import annotations

import re
import unicodedata

_WORDS = {
    "good": "good ok okay io normal normals pass passed defectfree nodefect gut gutteil gutteile bon bons conforme"
    " buono bueno nominal 良品 合格 合格品 正常 양품 정상",
    "bad": "bad ng nok nio notok ko fail failed faulty reject rejects rejected defect defects defective anomaly"
    " anomalies anomalous abnormal schlecht fehler fehlerhaft defekt ausschuss mauvais defaut nonconforme difettoso"
    " malo defecto defectuoso 不良 不良品 不合格 异常 異常 缺陷 欠陥 불량",
    "mask": "mask masks groundtruth gt label labels annotation annotations segmentation maske masken masque masques"
    " 掩膜 标注",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_OF_WHAT = re.compile(r"(images?|imgs?|photos?|pics?|pictures?|parts?|samples?|test|train|dir|folder|bilder|teile)$")


def role(name: str) -> str | None:
    """ "good", "bad" or "mask" for a folder whose name is a word for it, however it is spelt; else None."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = re.sub(r"[\s._\-]+|[\u0300-\u036f]", "", plain)
    plain = unicodedata.normalize("NFC", plain)
    return _ROLES.get(plain) or _ROLES.get(_OF_WHAT.sub("", plain))
