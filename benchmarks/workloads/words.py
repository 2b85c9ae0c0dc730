"""The words that prompts are made of: 1024 plain English ones, so that ten bits choose one.

Common words are mostly one token in every tokenizer, which makes prompts of exact length easy.
Their order is part of every text: a word is never moved, and one that is replaced changes runs.
"""

from __future__ import annotations

_TEXT = """
about above accept act action actual add advice afternoon again age agree aim air allow almost
alone already also among amount and anger animal announce another any anyone apart appear apply
approach area arm army arrange arrive article as asleep at attack attend attract author autumn
avoid awake award away baby bad bag balance ball bank bar base basket bath be beach bear beat
beautiful become bed began begin behind being belief belong below bench bend berry beside better
between beyond bill bird bit bite black blade blame blanket blind blood blow board boat boil bold
bone boot border born borrow bottle bottom bowl boy branch bread break breath bridge bright bring
broad brother brown build building burst bus bush busy but button buy cabin cable calendar call
calm camp can candle capital car card care carpet carry case castle cattle cause ceiling center
century chain chair chance change charge cheap check chest chicken child choice church circle
citizen claim class clear clever climb clock cloth cloud coach coast coat coin cold college color
column comfort command company compare concern condition consider contain content control cook
copper copy corner correct cost could council country couple course court cousin cow craft create
credit crime crop crowd crown cry cup curious curtain curve cut cycle daily dance danger data date
dawn day deal dear debate decade decide deer defend deliver demand depend describe desert desire
desk develop device diary differ difficult dinner direct discover discuss distance divide do dog
dollar double doubt dozen draw dress drink drive dry duck during dust each ear early earth east
eat edge effect effort egg either elbow electric element else empire empty end enemy engine enjoy
enter entire escape even evening ever every example except excite exercise expect expert explain
extend extra face fact fail fair faith false family far farm fast father fear feature feed female
fence field fifteen fight figure file film final fine finger fire firm first fit five flag flame
flavor flight flood floor flour flower fly follow food for force foreign forget fork formal former
forty forward four frame free freeze fresh frog from fruit fuel full fur furniture future gain
garden gas gather general gentle giant gift give glad globe glove go goat gold govern grain grass
gray green greet grocery group grow guard guess guide habit hair hall hammer handle hang happy
harbor hard harvest hat hay head hear heart heavy height help herb here hide high history hit hold
holiday hollow honest honey hope horn hospital host hot hour house huge human humor hundred hunger
hurry ice if image impact import in inch include increase indeed influence inform insect inside
instant iron island it item jacket jar jazz job join joke journal joy judge jump june jungle just
justice keep kettle kick kind king kite knee knock know labor lack lady lake lamp language large
late laugh law layer lazy leaf league least leather left leg lemon lend length lesson let level
library lie life lift like limit lion lip list listen live load loan lock log long look lose lot
loud low loyal lucky lunch magic mail main make male manage manner map marble mark market marry
match material may maybe meal mean measure medicine medium melody melt memory mention merchant
metal method might mild milk mill mine minor minute miss mist model modern money monkey mood moon
moral morning most motion mountain mouth move much music must nail name nation native near nearly
neat need needle nerve nest never new news nice night noble nobody none noon north not note notice
novel number nurse oak object observe odd of offer office oil old olive once one only open opinion
opposite or orange orbit organ origin our out oven over own pace pack pain paint palace pale paper
parade parent part partner pass past patient pattern pause peace peach pen pencil pepper perfect
perhaps permit person photo phrase pick picnic pie piece pig pilot pin pink pipe plain plan planet
plastic plate please plenty poem poet police polite pond pool poor port position post pot potato
pour powder practice praise present press prevent price pride print private problem process
product profit program promise proof protect proud provide public pulse pump pupil purpose push
puzzle quality queen question quick quite rabbit radio rail raise range rapid rate rather reach
read real reason receive recent record reduce refer regard region relate relax release remember
remind repair repeat reply report require rescue resist respect rest return reveal reward rhythm
ribbon rich ride ring ripe river road robin rock rocket roll roof root rope rough round route
royal rubber rug ruin run rural rush saddle safe salad salt sample sand scale scene school score
screen search season second secret see seek seem sell send sentence separate serious serve set
seven shade shake shape sharp sheep shelf shelter shift ship shirt shop shore shoulder shout show
side sight signal silence silver similar simple sing single sit site size skill skirt sky sleep
slide slow smart smell smoke smooth snow social soft soldier solid some son song sort soul soup
source space spare special speech speed spend spice spirit spoon spot spread spring stable stage
stamp stand start state stay steady steam stem step still stone store storm story strange stream
strong student style subject such sudden sugar suit summer supper supply sure surface surprise
swim swing tail take tall target task teach team ten tennis test than that theater then thick thin
think third this thought thousand through throw tide tie tight till time tiny tip title today
tomato tone tool tooth top total touch tower town track trade travel treasure tree trip trouble
true trust try tube tune twelve twenty twin two uncle under until up upon upset urban useful usual
value van vary vegetable very village violet voice volume vote wage wagon wake walk want war wash
waste watch wave way wealth wear wedding week weight well west whale what wheel when which while
whisper who whole wide wild win wind window wing winter wise wish within without wonder wood wool
work world worth wrap wrong yard year yes yesterday you young zebra zero
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
"""Lower-case letters only, all different."""
