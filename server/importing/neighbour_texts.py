"""Texts whose nearest neighbours tell what low precision loses; pure data, written for this.

Ten each of twenty subjects, as queries, sentences and passages, so that a text's ten nearest are
not chance; then eight each in five more languages, of the same subjects.
"""

from __future__ import annotations

NEIGHBOUR_TEXTS = tuple(
    """\
how do vaccines work
side effects of antibiotics
A fever is the body's way of fighting an infection.
The nurse measured the patient's blood pressure twice a day.
Surgeons replaced the damaged valve in an operation that took six hours.
High blood pressure often has no symptoms, yet it raises the risk of stroke and heart disease.
Antibiotics kill bacteria but do nothing against viruses such as those of the common cold.
The trial compared a new drug with a placebo in 1,200 adults with type 2 diabetes.
Wash your hands with soap for at least twenty seconds before you touch the wound.
Children should be vaccinated against measles before they go to school.
cheap flights to Lisbon in May
what to see in Kyoto in two days
The train from Zurich to Milan crosses the Alps in a little over three hours.
Our hotel was close to the beach but the rooms were noisy.
You need a visa if you stay in the country for longer than ninety days.
The ferry to the island runs twice a day in summer and not at all in winter.
Passengers must be at the gate forty minutes before departure, or their seats are given to others.
We hired a car at the airport and drove along the coast for a week.
The old town is best explored on foot, early in the morning before the buses arrive.
Travel insurance paid for the cancelled trip after the storm closed the airport.
how long to boil an egg
bread recipe without yeast
Whisk the eggs with the sugar until the mixture is pale and thick.
Salt the water before you add the pasta, and keep a cup of it for the sauce.
The soup needs two carrots, one onion, a stick of celery and a litre of stock.
Let the dough rise in a warm place for an hour, then shape it into two loaves.
Fry the garlic gently in olive oil; it turns bitter when it browns.
Fresh fish smells of the sea and its eyes are clear.
Roast the chicken at 200 degrees for seventy minutes and let it rest before you carve it.
This restaurant serves the best dumplings in the city, though you wait for a table.
inflation rate this year
difference between stocks and bonds
The central bank raised its interest rate by a quarter of a point on Thursday.
Shares of the airline fell by nine per cent after it warned of lower profits.
Her savings account pays two per cent a year, less than inflation takes away.
The merger creates the third largest bank in the country, with 40,000 employees.
Investors sold government bonds because they expect prices to rise faster.
A budget lists what you earn and what you spend each month.
The company reported revenue of 3.2 billion dollars, up from 2.9 billion a year earlier.
Unemployment fell to its lowest level in a decade, but wages hardly grew.
python list comprehension with condition
how to undo the last git commit
The function returns None when the key is missing from the dictionary.
A segmentation fault means that the program read memory which is not its own.
Indexes make queries fast and writes slow, so add one only where it is needed.
def mean(values): return sum(values) / len(values)
The server closes a connection that has been idle for sixty seconds.
Unit tests should be independent of each other and of the order in which they run.
SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 10;
The bug appears only when two threads write to the same file at once.
who won the world cup in 1998
rules of table tennis
The goalkeeper saved two penalties and his team reached the final.
She ran the marathon in two hours and twenty minutes, a record for the course.
The match was stopped for an hour because of heavy rain.
Their coach was dismissed after seven defeats in a row.
A tennis set is won by the first player with six games and a lead of two.
The cyclist broke away on the last climb and won the stage alone.
Fans filled the stadium long before the players came out to warm up.
The club signed a striker from Brazil for forty million euros.
how far is the moon
what is a black hole
Light from the nearest star takes more than four years to reach us.
The telescope photographed galaxies that formed soon after the Big Bang.
Saturn's rings are made of ice and rock, and most of the pieces are small.
A rover drilled into a rock on Mars and found traces of organic molecules.
The spacecraft used the gravity of Venus to gain speed on its way to Mercury.
Solar eclipses happen when the moon passes between the sun and the earth.
Astronauts on the space station see sixteen sunrises a day.
Nothing that falls through the horizon of a black hole comes back, not even light.
when do tomatoes ripen
plants for a shady garden
Prune the roses in late winter, just above a bud that faces outwards.
Bees and butterflies visit the lavender from June until August.
Water the seedlings in the morning so that their leaves dry before night.
Clay soil holds water well but is slow to warm in spring.
The apple tree flowers in April and bears fruit in September.
Snails ate every lettuce in the bed within two nights.
Compost is ready when it is dark, crumbly and smells of forest.
Move potted lemons indoors before the first frost.
how to get my deposit back from the landlord
tenant notice period
The court held that the contract was void because one party had been deceived.
You may cancel the order within fourteen days without giving a reason.
The witness told the jury that she had seen the defendant leave the house.
A landlord must repair the heating within a reasonable time.
The law protects employees who report crimes of their company.
Her lawyer appealed against the sentence on the same day.
Personal data may be kept only for as long as they are needed.
The patent expires twenty years after the application was filed.
best dog breed for a small flat
how much do cats sleep
The puppy chewed the shoes while nobody was at home.
Cats are active at dawn and dusk and doze for much of the day.
A parrot may learn hundreds of words and live for sixty years.
Horses sleep standing up but lie down to dream.
The vet advised a diet because the dog weighed four kilos too much.
Wolves hunt in packs and follow a herd for days.
The octopus opened the jar from inside and escaped from its tank.
Elephants remember the places where they found water in a drought.
weather tomorrow in Oslo
why is the sea level rising
Thunderstorms are expected in the south, with hail in some places.
The last ten years were the warmest since measurements began.
Glaciers in the Alps have lost half of their ice since 1900.
A hurricane draws its strength from warm water at the surface of the sea.
Snow fell overnight and the schools stayed closed.
Fog forms when moist air cools near the ground.
Trees store carbon as they grow and release it when they burn.
After three dry winters the reservoirs were down to a fifth of their volume.
how to learn the guitar
Beethoven's last symphony
The orchestra played the second movement much too fast.
She sings in a choir that rehearses every Tuesday evening.
The album was recorded in a church over three days.
A piano has eighty-eight keys and more than two hundred strings.
The band cancelled its tour because the drummer had broken an arm.
He wrote the opera at the age of nineteen and never heard it performed.
Jazz musicians improvise over a fixed sequence of chords.
The violin is tuned in fifths, from the low G to the high E.
battery life of electric cars in winter
how often to change engine oil
The brakes squeal when the car is cold.
An electric motor turns nearly all of its energy into motion.
Check the pressure of the tyres once a month and before long journeys.
The garage replaced the clutch and charged nine hundred euros.
Charging to eighty per cent takes half an hour at a fast charger.
Lorries must keep to the right on this stretch of the motorway.
The new tram line links the station with the university.
His bicycle has a belt instead of a chain and needs no oil.
when did the Roman Empire fall
causes of the First World War
The printing press made books cheap and spread new ideas across Europe.
Archaeologists found coins from the third century under the market square.
The treaty of 1648 ended thirty years of war.
Columbus sailed west in 1492 and reached the islands of the Caribbean.
The wall that had divided the city for twenty-eight years was opened in 1989.
Egyptian farmers depended on the yearly flood of the Nile.
Women in the country have had the vote since 1918.
The king was forced to sign a charter that limited his power.
how do noise cancelling headphones work
phone does not charge
The screen flickers when the laptop runs on battery.
Your password must have at least twelve characters.
The camera takes sharp pictures even in poor light.
Restart the router and wait until the green lamp stops blinking.
The update fixes a fault that drained the battery overnight.
The printer reports a paper jam although there is no paper in it.
A watch with GPS records how far and how fast you ran.
Back up your photographs to a second disk before you reset the phone.
how to write a cover letter
questions for a job interview
She resigned after twelve years to open a shop of her own.
The union asked for four days of work a week at the same pay.
New colleagues meet their mentor on the first morning.
Please send your application with a CV before the end of March.
Meetings without an agenda waste everybody's time.
He was promoted to head of the department last autumn.
Working from home saves the journey but makes it harder to switch off.
The contract has a trial period of six months.
is zero an even number
how to compute the area of a circle
The sum of the angles of a triangle is 180 degrees.
A prime number has exactly two divisors, one and itself.
The derivative of a function tells how fast it changes.
Toss a fair coin three times: the chance of three heads is one in eight.
The matrix has no inverse because its determinant is zero.
Pythagoras: in a right triangle the squares of the legs add up to that of the hypotenuse.
The median is less moved by extreme values than the mean.
Every even number above two seems to be the sum of two primes, but nobody has proved it.
film with the man who forgets everything
best novels of the nineteenth century
The plot is thin, but the actors make the film worth seeing.
Her second novel tells the story of three sisters in Dublin.
The museum shows two hundred drawings that were never exhibited before.
In the last scene the detective finds the letter behind the mirror.
The poem has fourteen lines and hardly a rhyme.
The director shot the whole film in one room.
Readers liked the hero less than his clumsy friend.
The painting was stolen in 1911 and found two years later in a hotel.
return a damaged parcel
where is my order
The shoes are comfortable but run half a size small.
Delivery is free for orders of more than fifty euros.
The lamp arrived broken and the seller sent a new one at once.
Money is refunded within ten days of the return.
I have used this vacuum cleaner for a year and would buy it again.
The colour differs from the picture, otherwise a fine coat.
Customer service kept me waiting on the phone for forty minutes.
This voucher cannot be combined with other offers.
how to help a child with homework
when do babies start to walk
The school has two classes in each year and a small library.
Parents and teachers meet twice a year to talk about each child.
Pupils learn a second language from the age of eight.
The kindergarten opens at seven and closes at five.
Her students write a short essay every Friday.
He studied physics in Vienna and taught at a village school afterwards.
Reading aloud every evening helps children to learn new words.
The university offers evening courses for people who work.
Wie lange muss ein Ei kochen?
Der Zug nach Mailand hat zwanzig Minuten Verspätung.
Die Zentralbank hat den Leitzins um einen Viertelpunkt erhöht.
Der Arzt verschrieb ihr ein Antibiotikum.
Im Mai blühen die Apfelbäume.
Der Vermieter muss die Heizung reparieren.
Die Mannschaft verlor das Finale im Elfmeterschießen.
Morgen fällt im Norden Schnee.
Combien de temps faut-il cuire un œuf ?
Le train pour Milan a vingt minutes de retard.
La banque centrale a relevé son taux directeur d'un quart de point.
Le médecin lui a prescrit un antibiotique.
Les pommiers fleurissent en mai.
Le propriétaire doit réparer le chauffage.
L'équipe a perdu la finale aux tirs au but.
Il neigera demain dans le nord.
¿Cuánto tiempo hay que cocer un huevo?
El tren a Milán lleva veinte minutos de retraso.
El banco central subió el tipo de interés un cuarto de punto.
El médico le recetó un antibiótico.
Los manzanos florecen en mayo.
El propietario debe reparar la calefacción.
El equipo perdió la final en los penaltis.
Mañana nevará en el norte.
鸡蛋要煮多长时间?
开往米兰的火车晚点二十分钟。
中央银行将利率提高了四分之一个百分点。
医生给她开了抗生素。
苹果树在五月开花。
房东必须修理暖气。
球队在点球大战中输掉了决赛。
明天北方有雪。
Сколько минут варить яйцо?
Поезд в Милан опаздывает на двадцать минут.
Центральный банк повысил ставку на четверть пункта.
Врач прописал ей антибиотик.
Яблони цветут в мае.
Хозяин квартиры обязан починить отопление.
Команда проиграла финал по пенальти.
Завтра на севере выпадет снег.
""".splitlines()
)
