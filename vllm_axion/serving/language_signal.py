# SPDX-License-Identifier: Apache-2.0
"""Is a message in something other than Spanish or English? Told by scripts and function words, no model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# First code point of each block and its script; "" is a script that says nothing (Latin, symbols, emoji).
_BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0000, ""), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, "Syriac"), (0x0750, "Arabic"), (0x0780, "Thaana"), (0x0900, "Devanagari"),
    (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, "Odia"), (0x0B80, "Tamil"),
    (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00, "Thai"),
    (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Myanmar"), (0x10A0, "another script"), (0x1100, "Hangul"),
    (0x1200, "Ethiopic"), (0x1400, ""), (0x1780, "Khmer"), (0x1800, "Mongolian"), (0x18B0, ""),
    (0x1F00, "Greek"), (0x2000, ""), (0x2E80, "Han"), (0x3000, ""), (0x3040, "Kana"), (0x3100, "Han"),
    (0x3130, "Hangul"), (0x3190, "Han"), (0x31F0, "Kana"), (0x3200, ""), (0x3400, "Han"), (0xA000, ""),
    (0xAC00, "Hangul"), (0xD800, ""), (0xF900, "Han"), (0xFB00, ""), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"),
    (0xFE00, ""), (0xFE70, "Arabic"), (0xFF00, ""), (0x20000, "Han"), (0x323B0, ""),
)  # fmt: skip
_STARTS = tuple(start for start, _ in _BLOCKS)

# Frequent function words. Words two languages share stand in both lists, so that they favour neither.
_FUNCTION_WORDS = {
    "Spanish": (
        "el la los las un una unos unas lo al del a en y e o u ni que qué se su sus no sí si es son "
        "soy eres somos era eran fue fui ser está están estoy estás estamos estar estaba esté hay "
        "había haya he has ha hemos han haber por para con sin sobre entre hasta desde hacia según "
        "durante contra tras como cómo más menos muy mucho mucha muchos muchas poco poca pocos "
        "pocas tan tanto tanta todo toda todos todas otro otra otros otras mismo misma algo alguien "
        "algún alguna algunos algunas nada nadie ningún ninguna cada cual cuál cuáles quien quién "
        "quiénes cuando cuándo donde dónde cuanto cuánto cuánta cuántos cuántas porque pero sino "
        "aunque mientras pues entonces también tampoco ya aún todavía siempre nunca jamás ahora hoy "
        "ayer mañana aquí ahí allí acá allá así bien mal mejor peor antes después luego solo sólo "
        "casi quizá quizás tal vez yo tú vos usted ustedes él ella ello nosotros nosotras vosotros "
        "ellos ellas me te nos os le les mi mis tu tus nuestro nuestra nuestros nuestras vuestro "
        "mío mía tuyo suyo este esta esto estos estas ese esa eso esos esas aquel aquella aquello "
        "aquellos puedo puedes puede podemos pueden podría podrías poder quiero quieres quiere "
        "queremos quisiera querría tengo tienes tiene tenemos tienen tener tenía hago haces hace "
        "hacen hacer haz hizo voy vas va vamos van ir iba doy das da dan dar dame dime dinos hazme "
        "explícame explica ayúdame ayuda cuéntame necesito necesita debo debe deben debería sé sabe "
        "sabes saber veo ves ver decir dice dicen sirve funciona significa llama existe gracias "
        "hola favor buenos buenas días día veces cosa cosas forma manera tipo parte dos tres q xq "
        "pq porfa tb k"
    ),
    "English": (
        "the a an of to in on at by for from with without into onto over under about between "
        "through during before after against and or but nor so yet if then else than as because "
        "while although though unless until since is are was were be been being am do does did "
        "doing done have has had having can could will would shall should may might must cannot "
        "can't don't doesn't didn't isn't aren't wasn't won't wouldn't i i'm i've i'd i'll you "
        "you're you've your yours he she it it's its we we're they they're them me my mine him his "
        "her hers us our ours their theirs myself yourself itself this that that's these those "
        "there there's here what what's which who who's whom whose when where why how how's not no "
        "yes all any some each every both few many much more most other another such same own only "
        "just also too very really quite still even again once ever never always often now today "
        "tomorrow yesterday tonight well up down out off away back get gets got give make makes "
        "made take go goes going come use using used need needs want wants let let's please thanks "
        "thank hello hi hey tell show help know think see say says mean means look find keep put "
        "work works one two three way thing things something anything nothing someone anyone "
        "everyone lot bit kind sort good bad better best new old"
    ),
    "French": (
        "le la les un une des du de et ou à au aux en dans que qui quoi ne pas est sont était être "
        "ce cette ces cet il elle nous vous ils elles je tu mon ma mes ton ta ses sur pour avec "
        "sans par plus mais comment pourquoi quand où quel quelle quels quelles bonjour merci très "
        "ai as avez avons suis peux peut faire fait moi toi se sa son leur si oui non qu veux veut "
        "voudrais voudrait vais vas va aller chez comme aussi bien encore toujours jamais demain "
        "aujourd hui beaucoup peu leurs notre votre nos vos y ont"
    ),
    "German": (
        "der die das den dem des ein eine einen einem einer und oder nicht ist sind war wie was wer "
        "wo wann warum wieso ich du er sie es wir ihr mich mir dich dir mein meine dein deine sein "
        "seine für mit ohne von zu zum zur im in auf an aus bei nach über unter auch noch nur schon "
        "sehr kann kannst können hat habe haben wird werden bitte danke hallo guten welche welcher "
        "welches gibt man dass wenn aber als heute so möchte möchten will willst gerne gern gehe "
        "geht machen mache immer wieder jetzt morgen viel mehr diese dieser dieses unser kein keine "
        "nichts etwas seid hier dort"
    ),
    "Italian": (
        "il lo la i gli le un uno una di del della dei delle degli da dal dalla in nel nella con su "
        "sul per tra e o che chi cosa come perché quando dove quale quanto non è sono sei era "
        "essere ho hai ha abbiamo mi ti si ci vi questo questa questi quello io tu lui lei noi voi "
        "loro mio mia tuo più molto anche ma se ciao grazie puoi posso fare dell all al alla sia "
        "vorrei voglio vuoi vado andare bene sempre mai domani oggi nostra nostro sua suo miei mie "
        "ancora adesso qui quella hanno fa"
    ),
    "Portuguese": (
        "o a os as um uma uns umas de do da dos das em no na nos nas e ou que quem se seu sua não "
        "sim é são está estão ser por para pra com sem como mais mas meu minha me te lhe este esta "
        "isto esse essa isso há qual quando onde quanto eu você vocês ele ela nós muito já hoje "
        "amanhã posso pode tenho olá obrigado obrigada ao à pelo pela também tem foi até fazer faz "
        "porque gostaria quero queria vou vai ir bem sempre nunca agora aqui meus minhas nosso "
        "nossa dele dela deste desta estou estava viajar depois ontem"
    ),
    "Catalan": (
        "el la els les un una uns unes de del dels al als a en i o que què qui se no sí és són està "
        "amb sense per com més però meu meva em et li aquest aquesta això aquell hi ha quin quina "
        "quan on quant jo tu ell ella nosaltres molt ja avui demà puc pots tinc hola gràcies sóc "
        "fer fa perquè també vull voldria vaig vas va anar sempre mai ara aquí bon bona nostre "
        "nostra"
    ),
    "Galician": (
        "o a os as un unha uns unhas de do da dos das en no na nos nas e ou que quen se seu súa non "
        "si é son está por para con sen como máis pero meu miña me che lle este esta isto hai cal "
        "cando onde canto eu ti el ela moi xa hoxe mañá podo podes teño ola grazas ao polo pola "
        "tamén ten foi ata facer quero vou vai ir sempre nunca agora aquí imos"
    ),
    "Basque": (
        "eta edo ez bai da dira zen nire zure hau hori bat zer nor non noiz nola zergatik zein "
        "kaixo eskerrik asko mesedez dut duzu du dugu naiz zara gara dago daude egin behar oso gaur "
        "bihar nahi daiteke dezakezu dezaket ere noa goaz joan orain beti"
    ),
    "Dutch": (
        "de het een en of niet is zijn was hoe wat wie waar wanneer waarom ik jij je hij zij ze wij "
        "we jullie mij me mijn jouw voor met zonder van naar in op aan uit bij over onder ook nog "
        "maar al zeer heel kan kun kunnen heb hebt heeft wordt worden alsjeblieft bedankt hallo "
        "goede welke er dat dit deze die als te om vandaag wil graag ga gaan morgen nu hier daar "
        "altijd nooit ons onze geen iets niets"
    ),
    "Swedish": (
        "och eller inte är var hur vad vem när varför jag du han hon den det vi ni de mig dig min "
        "din sin för med utan av till från i på om en ett som kan har hade ska skulle tack hej "
        "snälla vilken vilket vilka att men också mycket idag här där så mår god vill går gå "
        "imorgon nu alltid aldrig rekommenderar"
    ),
    "Danish": (
        "og eller ikke er var hvordan hvad hvem hvor hvornår hvorfor jeg du han hun den det vi i de "
        "mig dig min din sin for med uden af til fra på om en et som kan har havde skal skulle tak "
        "hej hvilken hvilket at men også meget dag her der så god vil går gå morgen nu altid aldrig"
    ),
    "Norwegian": (
        "og eller ikke er var hvordan hva hvem hvor når hvorfor jeg du han hun den det vi dere de "
        "meg deg min din sin for med uten av til fra på om en et ei som kan har hadde skal skulle "
        "takk hei hvilken hvilket å men også mye dag her der så god vil går gå imorgen nå alltid "
        "aldri"
    ),
    "Finnish": (
        "ja tai ei on ovat oli miten mitä mikä kuka missä milloin miksi minä sinä hän me te he "
        "minun sinun minulle kanssa ilman että kun jos mutta myös hyvin voi voit voitko olen olet "
        "kiitos hei moi tänään tämä se ne kuinka paljon haluan menen huomenna nyt aina täällä "
        "kotiin olisi"
    ),
    "Polish": (
        "i lub nie jest są był była jak co kto gdzie kiedy dlaczego ja ty on ona my wy oni mnie mi "
        "ci mój moja twój dla ze bez od do na we o po przy że ale też bardzo może możesz mogę mam "
        "masz proszę dziękuję cześć dzień dobry jaki jaka jakie który która to ten ta się czy "
        "dzisiaj chcę idę iść jutro teraz zawsze nigdy tutaj jestem tego"
    ),
    "Czech": (
        "a nebo ne je jsou byl byla jak co kdo kde kdy proč já ty on ona my vy oni mě mi ti můj "
        "moje tvůj pro se bez od do na ve o po při že ale také velmi může můžeš mohu mám máš prosím "
        "děkuji ahoj dobrý den jaký jaká který která to ten ta si dnes jsem jste chci jdu jedu jít "
        "zítra teď vždy nikdy tady"
    ),
    "Slovak": (
        "a alebo nie je sú bol bola ako čo kto kde kedy prečo ja ty on ona my vy oni ma mi ti môj "
        "moje tvoj pre so sa bez od do na vo o po pri že ale tiež veľmi môže môžeš mám máš prosím "
        "ďakujem ahoj dobrý deň aký aká ktorý to ten chcem idem ísť zajtra teraz vždy nikdy tu"
    ),
    "Croatian": (
        "i ili ne je su bio bila kako što tko gdje kada zašto ja ti on ona mi vi oni mene moj moja "
        "tvoj za sa bez od do na u o po pri da ali također vrlo može možeš mogu imam imaš molim "
        "hvala bok dobar dan koji koja to taj li se danas želim idem ići sutra sad uvijek nikad "
        "ovdje"
    ),
    "Romanian": (
        "și sau nu este sunt era cum ce cine unde când de eu tu el ea noi voi ei ele mie îmi îți "
        "meu mea tău pentru cu fără din la în pe un o unui unei că dar foarte poate poți pot am ai "
        "are mulțumesc bună salut care acest această să mai e azi lui cel cea vreau merg mâine acum "
        "mereu aici învăț către"
    ),
    "Hungarian": (
        "a az és vagy nem van vannak volt hogyan hogy mi mit ki hol mikor miért én te ti ők engem "
        "nekem egy ez is de csak nagyon tud tudsz kérem köszönöm szia jó napot milyen melyik meg ha "
        "mert ma kell lehet szeretnék szeretném akarok megyek holnap most mindig itt ott lesz volna"
    ),
    "Turkish": (
        "ve veya değil bir bu şu o ne nasıl kim nerede zaman neden niçin ben sen biz siz onlar bana "
        "sana benim senin için ile gibi kadar de da ki ama çok daha var yok mi mı mu mü misin mısın "
        "lütfen teşekkürler merhaba hangi bugün yarın iyi nedir istiyorum gidiyorum şimdi her "
        "burada olan"
    ),
    "Indonesian": (
        "dan atau tidak adalah itu ini yang di ke dari untuk dengan tanpa apa siapa mana kapan "
        "mengapa kenapa bagaimana saya aku kamu anda dia kami kita mereka bisa dapat ada akan sudah "
        "belum juga sangat tolong terima kasih halo selamat hari pada seperti lebih berapa ingin "
        "mau pergi besok sekarang selalu sini"
    ),
    "Vietnamese": (
        "và hoặc không là của có cho với những các một này đó gì ai đâu nào khi tại sao thế tôi bạn "
        "anh chị em nó chúng ta được đã đang sẽ rất cũng cảm ơn xin chào làm như hôm nay trong "
        "người về hãy giúp"
    ),
    "Esperanto": (
        "la kaj aŭ ne estas estis mi vi li ŝi ĝi ni ili mia via kio kiu kie kiam kial kiel ĉu en al "
        "de por kun sen pri tre ankaŭ sed saluton dankon bonvolu tio tiu hodiaŭ povas"
    ),
    "Latin": (
        "et aut non est sunt erat quid quis ubi quando cur quomodo ego tu nos vos ille haec hoc in "
        "ad ab cum sine pro per sed etiam salve gratias qui quae quod esse"
    ),
    "Slovenian": (
        "in ali ne je so bil bila kako kaj kdo kje kdaj zakaj jaz ti on ona mi vi oni za brez od do "
        "na po pri da tudi zelo lahko imam prosim hvala živjo sem si smo bi jutri danes grem moj "
        "moja ta to"
    ),
    "Latvian": (
        "un vai nav ir bija kā kas kur kad kāpēc es tu viņš viņa mēs jūs viņi man mans mana tavs "
        "par ar bez no uz bet arī ļoti var lūdzu paldies sveiki rīt šodien tas"
    ),
    "Lithuanian": (
        "ir ar ne yra buvo kaip kas kur kada kodėl aš tu jis ji mes jūs jie man mano tavo su be iš "
        "bet taip pat labai gali prašau ačiū labas rytoj šiandien tai"
    ),
    "Albanian": (
        "dhe ose nuk është janë ishte si çfarë kush ku kur pse unë ti ai ajo ne ju ata më të për me "
        "pa nga në por edhe shumë mund lutem faleminderit përshëndetje nesër sot një ky kjo"
    ),
    "Irish": (
        "agus nó ní tá bhí conas cad cé cá cathain mé tú sé sí sinn sibh siad mo do ar le gan ó go "
        "ach freisin an thoil raibh maith agat dia duit inniu amárach"
    ),
    "Welsh": (
        "mae yn oes ydy oedd sut beth pwy ble pryd pam fi ti ni chi nhw fy dy ei ein gyda heb ond "
        "hefyd iawn gall diolch helo heddiw yfory ar am wedi"
    ),
    "Afrikaans": (
        "en of nie is was hoe wat wie waar wanneer hoekom ek jy hy sy ons julle hulle my jou met "
        "sonder van na in op aan vir ook nog maar baie kan asseblief dankie hallo vandag môre die "
        "dit"
    ),
}
_HOME = ("Spanish", "English")
_HOME_LETTERS = frozenset("áéíóúüñªº")
_BY_WORD: dict[str, tuple[str, ...]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in set(_words.split()):
        _BY_WORD[_word] = (*_BY_WORD.get(_word, ()), _language)


_PLAIN = str.maketrans("áéíóúü", "aeiouu")


def _with_plain_and_parts(words: str) -> frozenset[str]:
    """Also without accents, and in the parts an apostrophe leaves: as people type, and as tokens come."""
    listed = words.split()
    parts = [part for word in listed if "'" in word for part in word.split("'") if len(part) > 1]
    return frozenset((*listed, *(word.translate(_PLAIN) for word in listed), *parts))


SPANISH_WORDS = _with_plain_and_parts(_FUNCTION_WORDS["Spanish"])
ENGLISH_WORDS = _with_plain_and_parts(_FUNCTION_WORDS["English"])


@dataclass(frozen=True)
class LanguageSignal:
    """`name` of the language or script that is neither; `strength` 0..1 of the proof (0: there is none)."""

    name: str = ""
    strength: float = 0.0


def script_of(char: str) -> str:
    """The script of a character; "" for Latin letters and for what is no letter."""
    return _BLOCKS[bisect_right(_STARTS, ord(char)) - 1][1]


def foreign_language(words: Sequence[str]) -> LanguageSignal:
    """Judge case-folded words, accents kept. Half the letters in another script is full strength; so is a
    clear lead in function words of one language over both Spanish and English."""
    letters = 0
    scripts: dict[str, int] = {}
    hits: dict[str, int] = {}
    for word in words:
        letters += len(word)
        if not word.isascii():
            for char in word:
                script = script_of(char)
                if script:
                    scripts[script] = scripts.get(script, 0) + 1
        for language in _BY_WORD.get(word, ()):
            hits[language] = hits.get(language, 0) + 1
    if not letters:
        return LanguageSignal()
    if scripts:
        name = max(scripts, key=lambda s: scripts[s])
        # An ideograph or a syllable says more than a Latin letter: weigh it as two.
        dense = 2 if name in ("Han", "Kana", "Hangul") else 1
        other = sum(scripts.values())
        share = dense * other / (letters - other + dense * other)
        if share >= 0.25:
            return LanguageSignal(name, min(1.0, 2.0 * share))
    home = max(hits.get(language, 0) for language in _HOME)
    # "ę", "ő", "ã" stand in neither home language (a borrowed "façade" is outweighed by the words around it).
    strange = sum(map(_has_strange_letter, words))
    away = [language for language in hits if language not in _HOME]
    best = max(away, key=lambda language: hits[language], default="another language")
    proof = hits.get(best, 0) + strange
    lead = proof - home
    # One word is proof enough only in a message that has no Spanish or English word at all.
    if lead < 1 or (proof < 2 and (home or len(words) > 6)):
        return LanguageSignal()
    return LanguageSignal(best, min(1.0, 0.5 + 0.5 * lead / max(2.0, 0.25 * len(words))))


def _has_strange_letter(word: str) -> bool:
    if word.isascii() or not word.isalpha() or any(map(script_of, word)):
        return False
    return any(char > "\x7f" and char not in _HOME_LETTERS for char in word)
