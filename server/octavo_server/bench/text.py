"""The text that benchmark prompts are cut from.

Real sentences, written for this, so that token ids are those of a language.
"""

from __future__ import annotations

TEXT = """\
A printer who sets a book begins with a large sheet of paper and a plan for folding it. Folded once, the sheet
makes a folio: two leaves, four pages, tall and grand, the size of atlases and church books. Folded twice it
makes a quarto, and folded three times an octavo, eight leaves that a reader can hold in one hand. Each fold
halves the page and doubles the number of places where a thought can rest. The sheets are gathered in order,
sewn through the fold, and bound between boards, and nobody who turns the pages later needs to know how the
paper lay on the press.

The order on the press looks mad. Page one stands beside page sixteen, page eight is upside down next to page
nine, and the apprentice who lays out the type must trust the plan rather than his eyes. There is a story
about a workshop in Ghent where the master refused to draw the plan for anyone. He folded a scrap of paper,
numbered its corners with a thumbnail, unfolded it and handed it over. "There," he said, "the sheet remembers
for you." For the next thirty years the apprentices of that town carried folded scraps in their pockets, and
one of them is said to have been buried with his.

Far to the north, on an island that has no trees, a woman named Ingrid kept the light. The lamp was electric
and looked after itself, but the regulations had been written when it burned oil, and the regulations wanted a
keeper. So every evening she climbed ninety-two steps, wiped the glass, wrote the weather in a ledger, and
climbed down again. Wind from the west, force six, visibility good. Two ships. A seal. In eleven years she had
filled fourteen ledgers, and once a year a boat came and took the full ones away. She never learned who read
them. One autumn a letter arrived from a student of the climate in a city she had never seen. Her numbers, the
student wrote, were the only unbroken record of that stretch of sea; the instruments on the buoys had drifted,
frozen, or been stolen, and the ledgers had not. Would she mind writing down the temperature of the water as
well? Ingrid read the letter twice, walked down to the landing with a thermometer on a string, and added a
column.

To keep bees through a hard winter you need patience, sugar, and a wall against the wind. A colony does not
sleep. It gathers into a ball around the queen, the outer bees packed like tiles and the inner ones shivering
to make heat, and slowly the ball turns itself inside out so that nobody stays cold for long. In the middle it
is as warm as a summer day. The keeper's work is mostly to leave them alone: lift the hive a little to judge
its weight, listen at the entrance with a piece of garden hose, brush the snow away from the door. If the hum
is even, all is well. If it rises when you tap and takes long to fall, the queen may be gone. Feed them a
thick syrup in September, two parts of sugar to one of water, and nothing liquid after the first frost.

How does a river decide where to bend? Water on a perfectly flat plain would still not run straight. Any small
thing, a fallen trunk or a patch of clay, pushes the current to one side, and where the current is faster it
bites into the bank. On the other side the water slows down and drops its sand. So the bend grows, and sends
the current across to the opposite bank, where the next bend begins. The width of a bend is about eleven times
the width of the river, whether the river is the Amazon or a trickle across a beach. In the end a loop becomes
so round that its neck breaks through in a flood, and the river takes the short way, leaving behind a lake in
the shape of a new moon.

Recipe for a plain loaf. Five hundred grams of flour, three hundred and fifty of water, ten of salt, and two
of yeast. Mix them in the evening until no dry flour is left, cover the bowl, and go to bed. The dough will
rise while you sleep. In the morning fold it four times, like a letter, and let it rest for an hour on a
floured cloth. Heat an iron pot in the oven until it is as hot as the oven goes. Turn the loaf into the pot,
put the lid on, and bake it for thirty minutes; then take the lid away and bake it until the crust is the
colour of a chestnut. Let it cool before you cut it. Nobody does, but let it cool.

The museum of lost instruments has one room and no signs. A visitor hears before seeing: someone is always
playing. There is a violin with a horn instead of a body, built so that it could be heard on the first
gramophone records; a piano whose keyboard curves around the player like a smile; a box with thirty whistles
that was carried by shepherds and answered only by other boxes of its kind. The curator's favourite is the
quietest. It is a harp strung between two trees in the courtyard, and only the wind may play it. In the
visitors' book a child has written: I waited a long time and then it said good afternoon.

When the committee met to choose a standard width for the railway, four engineers brought four rulers and five
opinions. Miss Okafor, who took the minutes, noted the arguments in two columns. A wide track is steadier,
carries more, and costs more in the hills. A narrow track turns tightly, costs little, and must be laid twice
when the town grows. At six in the evening the chairman asked what the neighbours had built, and after a
silence somebody fetched a map. They chose the width that was already there on both sides of the border. "It
is not the best one," Miss Okafor wrote, "but it is the one that continues."

Every large number was small to somebody. The stars that can be seen without a glass on a clear night are
about as many as the words in a long chapter. A heart beats as often in a day as there are people in a
middling town. If you counted one number a second without stopping, you would reach a million in less than
twelve days, and a billion when your children were grown. The old surveyors had a trick for such things: they
never wrote down a distance without the time it takes to walk it. Three leagues, they wrote, or one morning;
and everyone knew what was meant.
"""
