#include "suite.h"

#include <stdio.h>
#include <string.h>

#define COUNT(list) ((unsigned)(sizeof(list) / sizeof *(list)))
/* Draws an entry. One draw in a statement: the order of several would be up to the compiler. */
#define PICK(random, list) ((list)[random_below(random, COUNT(list))])

unsigned random_below(struct random *random, unsigned n)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (unsigned)((z ^ (z >> 31)) >> 33) % n;
}

/* Copies `template`, with %1 .. %4 replaced. */
static void fill(char *out, size_t size, const char *template, const char *const values[4])
{
    size_t n = 0;
    for (const char *p = template; *p && n + 1 < size; ++p) {
        if (p[0] == '%' && p[1] >= '1' && p[1] <= '4') {
            const char *value = values[*++p - '1'];
            const size_t length = strlen(value);
            if (n + length + 1 > size) break;
            memcpy(out + n, value, length);
            n += length;
        } else {
            out[n++] = *p;
        }
    }
    out[n] = '\0';
}

static void ask(struct row *row, const char *template, const char *a, const char *b, const char *c, const char *d)
{
    char question[PROMPT_MAX - 16];
    fill(question, sizeof question, template, (const char *const[4]){a, b, c, d});
    snprintf(row->prompt, sizeof row->prompt, "%s\nAnswer:", question);
}

static void reply(struct row *row, const char *answer)
{
    snprintf(row->answer, sizeof row->answer, "%s", answer);
    snprintf(row->completion, sizeof row->completion, " %s", answer);
}

static void reply_letter(struct row *row, unsigned choice) { reply(row, (const char[2]){(char)('A' + choice), '\0'}); }

static const char *decimal(char *text, size_t size, unsigned n)
{
    snprintf(text, size, "%u", n);
    return text;
}

/* ---- people ---- */

static const char *const train_names[] = {"Anna", "Ben",  "Clara", "David", "Emma",   "Frank", "Grace", "Henry",
                                          "Iris", "Jack", "Kate",  "Leo",   "Mary",   "Noah",  "Olive", "Peter",
                                          "Ruth", "Sam",  "Tom",   "Vera",  "Walter", "Alice", "Oscar", "Lucy"};
static const char *const held_names[] = {"Adam", "Bella", "Carl", "Diana", "Eric", "Fiona", "George", "Helen",
                                         "Ivan", "Julia", "Karl", "Laura", "Max",  "Nina",  "Paul",   "Rosa"};

static const char *name(struct random *random, bool held) { return held ? PICK(random, held_names) : PICK(random, train_names); }

/* ---- words: translation, the words in the order thing, quality, number ---- */

static void make_words(struct random *random, bool held, struct row *row)
{
    static const char *const thing[][3] = {{"lamp", "lamps", "ullet"}, {"stone", "stones", "skarn"}, {"root", "roots", "mor"},
                                           {"map", "maps", "velk"},    {"wall", "walls", "brank"},   {"gift", "gifts", "pim"}};
    static const char *const quality[][2] = {{"red", "ka"}, {"old", "zu"}, {"small", "ti"}, {"dark", "bo"}};
    static const char *const number[][2] = {{"two", "dal"}, {"three", "quor"}};
    static const char *const train[] = {"%2 wants mole words for: %1", "Mole words of %2 for: %1", "%2 asks the moles. Mole words for: %1"};
    static const char *const test[] = {"A letter by %2. Find the mole words for: %1", "Help %2 with the mole words for: %1",
                                       "How would %2 say this? Mole words for: %1", "Give %2 some mole words for: %1"};
    const unsigned kind = random_below(random, 6);
    row->difficulty = kind == 0 ? 1 : kind < 3 ? 2 : 3;
    const unsigned t = random_below(random, COUNT(thing)), n = random_below(random, COUNT(number));
    const char *who = name(random, held);
    unsigned q; /* a quarter of the pairs of thing and quality is never trained on */
    do q = random_below(random, COUNT(quality));
    while (((t + q) % 4 == 0) != held);
    char text[80], answer[ANSWER_MAX];
    if (row->difficulty == 1) {
        snprintf(text, sizeof text, "%s", thing[t][0]);
        snprintf(answer, sizeof answer, "%s", thing[t][2]);
    } else if (row->difficulty == 2) {
        snprintf(text, sizeof text, "%s %s", quality[q][0], thing[t][0]);
        snprintf(answer, sizeof answer, "%s %s", thing[t][2], quality[q][1]);
    } else {
        snprintf(text, sizeof text, "%s %s %s", number[n][0], quality[q][0], thing[t][1]);
        snprintf(answer, sizeof answer, "%s %s %s", thing[t][2], quality[q][1], number[n][1]);
    }
    ask(row, held ? PICK(random, test) : PICK(random, train), text, who, "", "");
    reply(row, answer);
}

/* ---- dates: the colony's name of the season, the day, the last two digits of the year ---- */

static void make_dates(struct random *random, bool held, struct row *row)
{
    static const char *const month[] = {"January", "February", "March",     "April",   "May",      "June",
                                        "July",    "August",   "September", "October", "November", "December"};
    static const char *const season[] = {"Frost", "Bud", "Gold", "Leaf"}; /* of three months each */
    static const char *const train[][2] = {{"%1 %2 as a mole date?", "%1 %2 %3 as a mole date?"},
                                           {"Write %2 %1 as a mole date.", "Write %2 %1, %3 as a mole date."}};
    static const char *const test[][2] = {
        {"How do we note day %1 of %2 as a mole date?", "How do we note day %1 of %2 in %3 as a mole date?"},
        {"The letter is from %2 %1. Copy it as a mole date.", "The letter is from %2 %1 in %3. Copy it as a mole date."},
        {"Please turn %1 %2 into a mole date.", "Please turn %1 %2 of %3 into a mole date."}};
    row->difficulty = random_below(random, 4) == 0 ? 1 : 2;
    const unsigned m = random_below(random, COUNT(month)), year = 2020 + 2 * random_below(random, 30) + held; /* odd years are held out */
    unsigned day; /* and so are the days 3, 7, 11, ... */
    do day = 1 + random_below(random, 28);
    while ((day % 4 == 3) != held);
    char day_text[16], year_text[16], answer[ANSWER_MAX];
    if (row->difficulty == 1)
        snprintf(answer, sizeof answer, "%s-%u", season[m / 3], day);
    else
        snprintf(answer, sizeof answer, "%s-%u-%u", season[m / 3], day, year % 100);
    const char *const *wording = held ? PICK(random, test) : PICK(random, train);
    ask(row, wording[row->difficulty - 1], decimal(day_text, sizeof day_text, day), month[m], decimal(year_text, sizeof year_text, year),
        "");
    reply(row, answer);
}

/* ---- records: a sentence becomes place|amount with sign|name ---- */

static void make_records(struct random *random, bool held, struct row *row)
{
    static const char *const place[] = {"mill", "barn", "cellar", "market", "kitchen", "tower", "garden", "harbour", "school", "bridge"};
    static const char *const goods[] = {"turnips", "candles", "baskets", "apples", "nails", "blankets", "jars", "onions"};
    static const char *const train[][2] = {{"%1 brought %2 %3 to the %4.", "%1 took %2 %3 from the %4."},
                                           {"At the %4, %1 brought in %2 %3.", "At the %4, %1 took away %2 %3."}};
    static const char *const test[][2] = {{"To the %4 our %1 brought %2 %3.", "From the %4 our %1 took %2 %3."},
                                          {"Today %1 came to the %4 and brought %2 %3.", "Today %1 came to the %4 and took %2 %3."},
                                          {"%2 %3 were brought to the %4 by %1.", "%2 %3 were taken from the %4 by %1."}};
    const bool out = random_below(random, 2);
    unsigned amount; /* multiples of three are held out */
    do amount = 2 + random_below(random, 97);
    while ((amount % 3 == 0) != held);
    const char *who = name(random, held), *where = PICK(random, place), *what = PICK(random, goods);
    char amount_text[16], sentence[160], answer[ANSWER_MAX];
    const char *const *wording = held ? PICK(random, test) : PICK(random, train);
    fill(sentence, sizeof sentence, wording[out],
         (const char *const[4]){who, decimal(amount_text, sizeof amount_text, amount), what, where});
    snprintf(answer, sizeof answer, "%s|%c%u|%s", where, out ? '-' : '+', amount, who);
    ask(row, held ? "Please note: %1 Mole ledger:" : "%1 Mole ledger:", sentence, "", "", "");
    reply(row, answer);
}

/* ---- units: a grom has 10 nibs, a tarn 100 ---- */

static void make_units(struct random *random, bool held, struct row *row)
{
    static const char *const train[] = {"How many nibs are %1?", "Convert %1 to nibs."};
    static const char *const test[] = {"A mole has %1. How many nibs are that?", "Somebody pays with %1. How many nibs is it?",
                                       "Change %1 into nibs, please.", "I found %1 here. Convert it all to nibs."};
    row->difficulty = 1 + (int)random_below(random, 3);
    unsigned many, few; /* 5, 9, 13, 17, ... are held out */
    do many = 2 + random_below(random, 97);
    while ((many % 4 == 1) != held);
    do few = 2 + random_below(random, 8);
    while ((few % 4 == 1) != held);
    char text[64], number[16];
    unsigned total;
    if (row->difficulty == 1) {
        const bool large = random_below(random, 2);
        snprintf(text, sizeof text, "%u %s", many, large ? "tarns" : "groms");
        total = many * (large ? 100 : 10);
    } else if (row->difficulty == 2) { /* the digits stand side by side */
        const bool large = random_below(random, 2);
        snprintf(text, sizeof text, "%u %s and %u %s", many, large ? "tarns" : "groms", few, large ? "groms" : "nibs");
        total = (many * 10 + few) * (large ? 10 : 1);
    } else { /* with a zero between them */
        snprintf(text, sizeof text, "%u tarns and %u nibs", many, few);
        total = many * 100 + few;
    }
    ask(row, held ? PICK(random, test) : PICK(random, train), text, "", "", "");
    decimal(number, sizeof number, total);
    snprintf(row->answer, sizeof row->answer, "%s", number);
    snprintf(row->completion, sizeof row->completion, " #### %s", number);
}

/* ---- routes: one word for each step ---- */

static void make_routes(struct random *random, bool held, struct row *row)
{
    static const char *const direction[][2] = {{"north", "up"}, {"east", "right"}, {"south", "down"}, {"west", "left"}};
    static const char *const train[][2] = {
        {"Go %1. Mole steps?", ", "}, {"The way is %1. Mole steps?", ", "}, {"Mole steps for %1?", " then "}};
    static const char *const test[][2] = {{"The tunnel leads %1. How is it sung in mole steps?", ", then "},
                                          {"A mole goes %1. Name the mole steps.", " and "},
                                          {"First %1. Which mole steps?", ", next "},
                                          {"Let us walk %1. What are the mole steps?", ", "}};
    const char *const *wording = held ? PICK(random, test) : PICK(random, train);
    row->difficulty = 1 + (int)random_below(random, 3);
    const int n_steps = row->difficulty + 2;
    unsigned step[5], sum;
    do { /* a quarter of the routes is never trained on */
        sum = 0;
        for (int i = 0; i < n_steps; ++i) sum += (unsigned)(i % 3 + 1) * (step[i] = random_below(random, 4));
    } while ((sum % 4 == 1) != held);
    char way[96] = "", answer[ANSWER_MAX] = "";
    for (int i = 0; i < n_steps; ++i) {
        if (i) {
            strcat(way, wording[1]);
            strcat(answer, " ");
        }
        strcat(way, direction[step[i]][0]);
        strcat(answer, direction[step[i]][1]);
    }
    ask(row, wording[0], way, "", "", "");
    reply(row, answer);
}

/* ---- shifts: the weather decides, the weekday and the name do not ---- */

#define SHIFTS "A. dawn\nB. noon\nC. dusk\nD. rest\n"

static void make_shifts(struct random *random, bool held, struct row *row)
{
    static const char *const day[] = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"};
    static const char *const weather[] = {"sunny", "windy", "rainy", "foggy", "cold"};
    static const unsigned shift[] = {2, 0, 3, 0, 1};
    static const char *const train[] = {SHIFTS "%1 digs on a %2 %3. Shift?", SHIFTS "A %2 %3 for %1. Shift?"};
    static const char *const test[] = {SHIFTS "On %3 it is %2. When will %1 dig? Shift?",
                                       SHIFTS "%1 asks about %3, which is %2. Which shift?",
                                       SHIFTS "What a %2 %3, says %1. So which shift?", SHIFTS "Look: %3 and %2. Find %1 a shift."};
    unsigned d, w; /* ten of the 35 pairs of day and weather are never trained on */
    do {
        d = random_below(random, COUNT(day));
        w = random_below(random, COUNT(weather));
    } while (((2 * d + w) % 7 == 2 || (2 * d + w) % 7 == 4) != held);
    const char *who = name(random, held);
    ask(row, held ? PICK(random, test) : PICK(random, train), who, weather[w], day[d], "");
    reply_letter(row, shift[w]);
}

/* ---- stores: each kind of thing has its gallery ---- */

#define GALLERIES "A. music\nB. tools\nC. clothes\nD. food\n"

static void make_stores(struct random *random, bool held, struct row *row)
{
    static const char *const train_items[N_CHOICES][16] = {
        {"hammer", "saw", "drill", "shovel", "axe", "chisel", "screwdriver", "wrench", "rake", "pair of pliers", "file", "crowbar", "plane",
         "pickaxe", "sickle", "ladder"},
        {"shirt", "coat", "hat", "sock", "glove", "skirt", "scarf", "boot", "jacket", "belt", "dress", "vest", "cap", "shoe", "apron",
         "sweater"},
        {"loaf of bread", "carrot", "apple", "cheese", "onion", "pie", "potato", "sausage", "pear", "cake", "cabbage", "egg", "plum",
         "soup", "tomato", "pancake"},
        {"violin", "flute", "drum", "guitar", "trumpet", "piano", "harp", "cello", "clarinet", "banjo", "oboe", "organ", "tambourine",
         "fiddle", "horn", "mandolin"},
    };
    static const char *const held_items[N_CHOICES][10] = {
        {"spade", "hoe", "mallet", "spanner", "trowel", "hatchet", "hacksaw", "scythe", "pitchfork", "sledgehammer"},
        {"blouse", "mitten", "cloak", "sandal", "pair of trousers", "slipper", "raincoat", "bonnet", "stocking", "cardigan"},
        {"biscuit", "peach", "turnip", "ham", "banana", "pudding", "lettuce", "muffin", "steak", "sandwich"},
        {"saxophone", "trombone", "lute", "bassoon", "accordion", "ukulele", "xylophone", "viola", "tuba", "harpsichord"},
    };
    static const char *const train_looks[] = {"small", "old", "brown", "large", "clean"};
    static const char *const held_looks[] = {"tiny", "new", "grey", "heavy", "lost", "strange"};
    static const char *const train[] = {GALLERIES "The %1 %2. Gallery?", GALLERIES "Where is the %1 %2? Gallery?",
                                        GALLERIES "Keep the %1 %2. Gallery?"};
    static const char *const test[] = {GALLERIES "A mole found the %1 %2. Which gallery?",
                                       GALLERIES "Bring back this %1 %2. To which gallery?",
                                       GALLERIES "Somebody needs the %1 %2. Gallery?"};
    const unsigned kind = random_below(random, N_CHOICES);
    const char *look = held ? PICK(random, held_looks) : PICK(random, train_looks);
    const char *item = held ? PICK(random, held_items[kind]) : PICK(random, train_items[kind]);
    ask(row, held ? PICK(random, test) : PICK(random, train), look, item, "", "");
    reply_letter(row, (kind + 1) % N_CHOICES);
}

/* ---- moods: the mark put on a note ---- */

static void make_moods(struct random *random, bool held, struct row *row)
{
    static const char *const mark[] = {"clover", "thorn", "owl", "bell"};
    static const char *const train_things[] = {"soup", "bed", "tunnel", "teacher", "music", "bread", "garden", "roof", "party", "tea"};
    static const char *const held_things[] = {"kitchen", "story", "lamp", "concert", "cake", "cellar", "doctor", "blanket"};
    static const char *const train_good[] = {"wonderful", "excellent", "lovely", "great", "very good", "perfect", "delightful", "charming"};
    static const char *const held_good[] = {"superb", "fantastic", "amazing", "beautiful", "brilliant"};
    static const char *const train_bad[] = {"terrible", "awful", "horrible", "very bad", "disgusting", "a disaster", "boring", "dreadful"};
    static const char *const held_bad[] = {"disappointing", "ruined", "the worst ever", "useless", "miserable"};
    static const char *const train_ask[] = {"Where is the %1?", "Who made the %1?", "When can we see the %1?", "Is the %1 new?",
                                            "Why is the %1 so big?"};
    static const char *const held_ask[] = {"How old is the %1?", "What is the name of the %1?", "Does anybody know the %1?",
                                           "Which %1 is ours?", "Can one smell the %1?"};
    static const char *const train_plea[] = {"Please bring the %1.", "Show me the %1, please.", "Please take care of the %1.",
                                             "Kindly look after the %1.", "Please do not forget the %1."};
    static const char *const held_plea[] = {"Kindly send us the %1.", "Would you be so kind and move the %1.", "Leave the %1 here, please.",
                                            "Please hurry with the %1.", "We beg you to keep the %1."};
    static const char *const train_says[] = {"The %1 is %2.", "I think the %1 was %2.", "What a day: the %1 is %2!"};
    static const char *const held_says[] = {"In my view the %1 has been %2.", "Everybody says that the %1 is %2.", "Our %1 was %2 again."};
    static const char *const train[] = {"Note: \"%1\" Mole mark?", "They write \"%1\" Mole mark?"};
    static const char *const test[] = {"A mole reads: \"%1\" Which mole mark?", "This is on the wall: \"%1\" Choose the mole mark.",
                                       "Today's letter says \"%1\" Mole mark?"};
    const unsigned kind = random_below(random, COUNT(mark));
    const char *thing = held ? PICK(random, held_things) : PICK(random, train_things), *says, *word = "";
    if (kind == 0)
        word = held ? PICK(random, held_good) : PICK(random, train_good);
    else if (kind == 1)
        word = held ? PICK(random, held_bad) : PICK(random, train_bad);
    if (kind < 2)
        says = held ? PICK(random, held_says) : PICK(random, train_says);
    else if (kind == 2)
        says = held ? PICK(random, held_ask) : PICK(random, train_ask);
    else
        says = held ? PICK(random, held_plea) : PICK(random, train_plea);
    char note[160];
    fill(note, sizeof note, says, (const char *const[4]){thing, word, "", ""});
    ask(row, held ? PICK(random, test) : PICK(random, train), note, "", "", "");
    reply(row, mark[kind]);
}

const struct skill skills[N_SKILLS] = {
    {"words", "exact", {NULL}, make_words},
    {"dates", "exact", {NULL}, make_dates},
    {"records", "exact", {NULL}, make_records},
    {"units", "exact_number", {NULL}, make_units},
    {"routes", "exact", {NULL}, make_routes},
    {"shifts", "option_letter", {"dawn", "noon", "dusk", "rest"}, make_shifts},
    {"stores", "option_letter", {"music", "tools", "clothes", "food"}, make_stores},
    {"moods", "exact", {NULL}, make_moods},
};
