# SPDX-License-Identifier: Apache-2.0
"""Words that name a concept in many languages: what examples alone would have to repeat in each of them.

Case-folded, parted by commas. `stem*` is a word's beginning, `*stem*` may stand anywhere (scripts without
spaces), anything else is a whole word. A match is one more feature for the classifier,
which learns from the
examples how far to believe it: "python" may be a snake. Symbols stand apart, as the tokens do: `c ++`.
"""

from __future__ import annotations

import re
import unicodedata

_CODING = """
python*, javascript*, dart, delphi, arduino, terraform, ansible, kubectl, array*, string, strings,
dataframe*, endpoint*, rebase, usestate, useeffect, bucle*, typescript*, java, kotlin, rust, golang,
c ++, c #, php, ruby, perl, scala, haskell, matlab, lua, sql, mysql, postgres*, sqlite, html, css, json,
yaml, regex*, bash, powershell, shell, pandas, numpy, django, flask, fastapi, react, vue, angular,
node . js, npm, pip, docker*, kubernetes, git, github, makefile, cmake, gcc, webpack, awk, pytest,
junit, stacktrace, traceback, exception, codigo*, code, codice, codi, codul, kod*, quellcode, script*,
fonction*, funktion, funktionen, funkcj*, funkce, funkci*, funzione, funcao, funcoes, funcio, functie,
fonksiyon*, fungsi, funktio*, compil*, kompil*, debug*, depura*, refactor*, unit test*, test unitari*,
expresion regular, bug, bugs, vba, excel formula, program, programa, programma, programm, programme,
код, кода, коде, коду, функци*, скрипт*, компил*, программу, запрос, κωδικα*, συναρτηση*, *代码*,
*代碼*, *函数*, *函數*, *コード*, *関数*, *バグ*, *スクリプト*, *プログラム*, *编程*, *脚本*, *코드*,
*함수*, *버그*, *스크립트*, *파이썬*, كود, الكود, دالة, برمج*, بايثون, קוד, פונקצי*, पायथन, *कोड*,
*फंक्शन*, *फ़ंक्शन*, *โค้ด*, *ฟังก์ชัน*
"""
_PICTURE = """
imagen, imagenes, image, images, imagem, imagens, immagin*, imatge*, imaxe*, foto, fotos, fotograf*,
photo*, picture*, screenshot*, captura, capturas, pantallazo*, capture d ' ecran, bildschirmfoto*, bild,
bilder, bildet, billede*, afbeelding*, kuva, kuvassa, zdjeci*, obraz*, kep, kepen, resim, resimde,
gambar, hinh anh, scan, scanned, escane*, scansion*, ocr, grafico, grafica, diagrama, diagram, chart,
plot, radiografia, x - ray, dibujo, drawing, adjunt*, attached, attachment, uploaded, ci - joint*,
angehangt*, allegat*, anexad*, pdf, diapositiv*, slides, video, handwrit*, handschrift*, manuscrit*,
whiteboard, картин*, изображен*, фото*, снимк*, скриншот*, εικονα*, φωτογραφια*, *画像*, *写真*, *图片*,
*圖片*, *照片*, *截图*, *사진*, *이미지*, صورة, الصورة, תמונה, *चित्र*, *तस्वीर*, *รูปภาพ*
"""
_TRANSLATION = """
traduc*, traduz*, traduir, tradui*, tradurre, translat*, ubersetz*, vertaal*, vertaling, oversaet*,
oversett*, oversatt*, kaanna, przetlumacz*, preloz*, prevedi, fordit*, cevir*, terjemah*, itzuli*,
перевед*, перевод*, μεταφρασ*, *翻译*, *翻譯*, *翻訳*, *訳して*, *번역*, ترجم*, תרגם, *अनुवाद*, *แปล*,
conjug*, como se dice, como digo, how do you say, how do i say, how to say, como se pronuncia,
pronounce, gramatic*, grammar, spelling, ortograf*, idioma, idiomas, language is, subtitul*, subjuntivo,
subjunctive, native speaker, native say
"""
_LANGUAGE_NAME = """
ingles, inglesa, espanol, espanola, castellano, frances, francesa, aleman, alemana, italiano, italiana,
portugues, portuguesa, catalan, gallego, euskera, vasco, valenciano, neerlandes, holandes, sueco, danes,
noruego, fines, finlandes, polaco, checo, eslovaco, hungaro, rumano, bulgaro, serbio, croata, griego,
turco, ruso, ucraniano, arabe, hebreo, persa, hindi, bengali, urdu, chino, mandarin, japones, coreano,
vietnamita, tailandes, indonesio, latin, esperanto, irlandes, quechua, guarani, nahuatl, english,
spanish, french, german, italian, portuguese, galician, basque, dutch, swedish, danish, norwegian,
finnish, polish, czech, slovak, hungarian, romanian, bulgarian, serbian, croatian, greek, turkish,
russian, ukrainian, arabic, hebrew, persian, farsi, chinese, cantonese, japanese, korean, vietnamese,
thai, indonesian, irish, welsh, tamil, telugu, yoruba, zulu, anglais, espagnol, allemand, englisch,
spanisch, franzosisch, inglese, spagnolo, tedesco, английск*, испанск*
"""
_PROGRAM = """
program, programs, programa, programas, programar, programming, programador*, aplicacion, app, apps,
web, pagina web, api, apis, bot, software, clase, clases, class, metodo, method, methods, variable,
variables, algoritmo*, algorithm*, consulta, query, queries, tabla, table, lista, list, fichero*,
archivo*, file, files, csv, excel, comando*, command*, terminal, error, errores, errors, falla, fallo,
crash*, null, undefined, loop*, test, tests, script, snippet, library, libreria*, import, package*,
paquete*, framework*, repo, repositorio*, repository, commit*, branch*, merge, deploy*, despleg*,
servidor*, server*, base de datos, database*, index, indice, join, select, insert, update, delete,
callback*, async, await, thread*, hilo*, recursi*, pointer*, puntero*, parse*, parsea*, serializ*,
json*, cron*, macro*, plugin*, widget*, frontend, backend, login, formulario*, form, boton*, button*,
pipeline*, linter, mock*, hook*, async*, websocket*, graphql, rest, orm, dto, enum*, struct*, lambda*,
decorator*, decorador*, generic*, interface*, interfaz, docstring*, codigo fuente, source code,
one liner, oneliner
"""
_MAKE = """
escribe*, escribi*, escriba*, crea, crear, creame, cree, haz, hazme, haga, genera*, generate*,
implementa*, implement*, programa*, write, create, build, make, add, anade*, agrega*, arregla*,
corrige*, fix, fixes, solve*, soluciona*, optimiza*, optimize*, optimise*, convierte*, convert*, migra*,
migrate*, port, porta, renombra*, rename*, ejecuta*, run, runs, instala*, install*, automatiza*,
automate*, document*, comenta*, revisa*, review*, test*, prueba*, valida*, validate*, parse*, ordena*,
sort*, filtra*, filter*, lee, read, schreib*, ecri*, scriv*, escrev*, napisz*, napis*, skriv*, schrijf,
yaz*, buat*, viet, напиш*, γραψ*
"""
_EXPLAIN = """
como funciona*, como trabaja*, como se forma*, como se produce*, como se mide*, como se calcula*,
como se fabrica*, como se obtiene*, como actua*, por que se, que es el, que es la, que es un,
que es una, que son los, que son las, en que consiste, en que se basa, para que sirve*,
diferencia* entre, diferencia hay, explica*, explique*, explain*, describe*, describa*, define*,
definicion, definition, how does, how do, how is, how are, what is the difference, difference between,
what causes, why does, why do, why is, why are, works, working, mecanismo*, mechanism*, principio*,
principle*, funcionamiento, proceso, process, propiedades, properties, ventajas, advantages,
desventajas, disadvantages, compare, compara*, comparison, causa, causas, cause, causes, efecto,
effect*, teoria*, theory, theories, teorema*, theorem*, ley, law, ecuacion*, equation*, formula*,
principios, arquitectura, architecture, estructura, structure*, sistema*, system*, modelo*, model*,
norma, normas, standard*, estandar*, especificacion*, specification*, protocolo*, protocol*
"""
_COMPUTING = """
monolit*, monolith*, serverless, event driven, cqrs, event sourcing, consistencia eventual,
eventual consistency, cap theorem, teorema cap, idempoten*, rate limit*, webhook*, api rest, rest api,
graphql, grpc, control de versiones, version control, ci cd, devops, observab*, telemetr*, sla, slo,
backup*, copia de seguridad, ransomware, phishing, malware, antivirus, man in the middle,
man - in - the - middle, ddos, sql injection, xss, csrf, zero trust, biometr*, contrasena*, password*,
cookies, navegador*, browser*, motor de busqueda, search engine*, indexa*, pagerank, recomendacion,
recommender*, aprendizaje por refuerzo, reinforcement learning, difusion latente, diffusion model*,
cuantizacion, quantiz*, tokeniz*, atencion, attention, rag, fine tuning, gpt, chatgpt, notacion o,
big o, np completo, np - complete, ordenacion, sorting algorithm*, arbol*, tree, trees,
listas enlazadas, linked list*, tabla hash, cola de prioridad, priority queue*, recursividad, recursion,
paradigma*, funcional, orientada a objetos, object oriented, tipado*, typing, monada*, monad*, ipv0,
streaming de video, video codec*, render*, ray tracing, shader*, tcp, udp, ip, ipv*, dns, dhcp, http,
https, tls, ssl, ssh, vpn, nat, bgp, ospf, vlan*, ethernet, wifi, wi - fi, router*, switch, red, redes,
network*, latenc*, ancho de banda, bandwidth, paquetes, packet*, firewall*, cortafuegos, proxy,
balanceador*, load balanc*, cpu*, gpu*, ram, ssd*, nvme, disco duro, hard drive*, procesador*,
processor*, microprocesador*, microprocessor*, cache*, kernel*, nucleo, sistema operativo,
operating system*, planificador*, scheduler*, memoria virtual, virtual memory, paginacion, paging,
deadlock*, interbloqueo*, semaforo*, mutex*, hilos, threads, concurren*, paralel*, parallel*,
distribuid*, distributed, consenso, consensus, raft, paxos, replica*, sharding, particion*, partition*,
acid, transaccion*, transaction*, nosql, relacional*, relational, btree, b - tree*, hash*, cifrad*,
encript*, encrypt*, criptogra*, cryptogra*, rsa, aes, clave publica, public key*, certificado*,
certificate*, firma digital, digital signature*, blockchain*, bitcoin, oauth*, token*, autentica*,
authentic*, autoriza*, authoriz*, virtualiz*, hipervisor*, hypervisor*, contenedor*, container*,
kubernetes, microservic*, cola de mensajes, message queue*, kafka, cloud, nube, cdn, compilador*,
compiler*, interprete*, interpreter*, garbage collect*, recolector de basura, bytecode, ensamblador,
assembly, bit, bits, byte, bytes, binari*, binary, codec*, compresion, compression, jpeg, mp0, h *,
unicode, utf, red neuronal, redes neuronales, neural*, aprendizaje automatico, machine learning,
deep learning, transformer*, gradient*, backpropagation, overfitting, sobreajuste, embedding*, llm,
llms, inteligencia artificial, artificial intelligence, big data, raid, bios, uefi, firmware, driver*,
controlador*, usb, pcie, bluetooth, nfc, rfid, lora, zigbee, mqtt, modbus, can, satelit*, gps, gnss, 0g,
fibra optica, fiber optic*, fibre optic*, antena*, antenna*, modula*, multiplex*, radar*, sonar, lidar,
latency, throughput, sensor*, informatic*, comput*, ordenador*, digital*, analogic*, analog*,
endianness, heap, stack, pila, socket*, dataset*, algoritmic*, complejidad, complexity, grafo*,
graph theory
"""
_ENGINEERING = """
norma une, une - en, iso 0, iec 0, ieee, din 0, astm, normativa, compliance, certificacion,
ficha tecnica, datasheet*, tolerancias, esquema electrico, wiring diagram, ladder, scada, hmi,
automatismo*, automation, actuador*, actuator*, lazo de control, control loop*, pid, realimenta*,
feedback loop*, filtro*, filter, adc, dac, pwm, i0c, spi, uart, fpga, asic, arm, risc*, x0,
arquitectura von neumann, von neumann, pipeline del procesador, ram ddr, subestacion*, substation*,
apagon*, blackout*, red electrica, power grid, grid, alterna, continua, ac, dc, trifasic*, three phase,
enchufe*, fusible*, fuse*, diferencial electrico, contador, smart meter, caldera de gas,
bomba hidraulica, radiador*, radiator*, suelo radiante, ventilacion, ventilation, geoterm*, geotherm*,
biomasa, biomass, biogas, hidrogeno verde, green hydrogen, almacenamiento, storage, ciclo combinado,
ciclo otto, arco de piedra, arch, arches, boveda*, vault, cupula*, dome, muro*, retaining wall, zapata,
pilote*, armadura, rebar, asfalto, asphalt, carretera, road, ferrocarril, railway*, catenaria,
contrapeso*, counterweight*, polea*, pulley*, palanca*, lever*, tornillo*, screw*, remache*, rivet*,
cable*, wire*, dron, drones, drone, avion*, aircraft, airplane*, helicopter*, misil*, submarino, buque*,
hull, quilla, ancla, sextante, reloj mecanico, mechanical watch*, cuarzo, quartz, cerradura*, lock,
imprenta, printing press, maquina de vapor, steam engine*, telar*, noise cancel*, cancelacion de ruido,
auricular*, earbud*, microphone*, microfono*, altavoz*, loudspeaker*, codigo qr, qr code*,
codigo de barras, barcode*, gps, chip, chips, oblea*, wafer*, pixel*, hdr, refresco, motor*, engine*,
turbin*, compresor*, compressor*, bomba, bombas, pump*, valvul*, valve*, piston*, cilindro*, cylinder*,
ciguenal*, crankshaft*, biela*, engranaj*, gear*, transmision*, transmission*, embrague*, clutch*,
diferencial, differential*, freno*, brake*, abs, suspension, amortiguador*, damper*, rodamiento*,
bearing*, inyeccion*, injection*, carburador*, carburet*, turbo*, diesel, gasolina, hibrid*, hybrid*,
electrico*, electrica*, electric*, voltaje*, voltage*, tension, corriente, current, amper*, vatio*,
watt*, ohm*, resistenc*, resist*, condensador*, capacitor*, inductor*, bobina*, transformador*,
transformer*, diodo*, diode*, transistor*, mosfet*, tiristor*, thyristor*, rectificador*, rectifier*,
inversor*, inverter*, oscilador*, amplificador*, amplifier*, circuito*, circuit*, semiconduct*,
microcontrolador*, microcontroller*, plc, plcs, servomotor*, stepper, rele, reles, relay*, bateria*,
batter*, litio, lithium, pila de combustible, fuel cell*, panel solar, paneles solares, placa solar,
placas solares, solar panel*, fotovolta*, photovolt*, aerogenerador*, wind turbine*, hidroelectric*,
hydroelectric*, reactor*, central nuclear, nuclear*, caldera*, boiler*, bomba de calor, heat pump*,
intercambiador*, heat exchanger*, refrigera*, refriger*, aire acondicionado, air condition*, nevera,
frigorifico, termostato*, thermostat*, aislante*, aislamiento, insulat*, hormigon, concrete, cemento,
cement, acero*, steel, aleacion*, alloy*, aluminio, aluminium, aluminum, cobre, copper, soldadura*,
weld*, solder*, fundicion, forja, casting, forging, mecaniza*, machining, torno, lathe*, fresadora*,
cnc, impresora 0d, 0d print*, plastico*, plastic*, polimer*, polymer*, ceramic*, composite*,
fibra de carbono, carbon fiber, carbon fibre, puente*, bridge*, viga*, beam*, columna*, cimenta*,
foundation*, presa, dam, dams, tunel*, tunnel*, grua*, crane*, ascensor*, elevator*, hidraul*, hydraul*,
neumatic*, pneumat*, aerodinam*, aerodynam*, ala, alas, wing*, helice*, propeller*, rotor*, cohete*,
rocket*, orbit*, satellite*, submarin*, locomot*, maglev, suspension bridge*, par motor, torque,
potencia, rendimiento, efficien*, eficienc*, friccion, friction, desgaste, wear, corrosion*, oxida*,
oxid*, rust*, fatiga, fatigue, tolerancia*, tolerance*, elasticidad, elasticity, dureza, hardness,
tenacidad, toughness, vibracion*, vibration*, resonancia, resonance, laser*, led, leds, oled, lcd,
pantalla tactil, touchscreen*, camara digital, microscop*, telescop*, microondas, microwave*, induccion,
induction, ultrason*, ultrasound*, rayos x, resonancia magnetica, mri, ingenier*, engineer*, maquina*,
machine*, mecanic*, mechanic*, industrial*, fabrica*, manufactur*, tuberia*, pipeline, depuradora*,
wastewater, desalin*, electroli*, galvan*, catodic*, anod*, catod*
"""
_SCIENCE = """
teorema, theorems, demuestra*, prove, proof*, proofs, deduce*, derive, deriva*, pendulo*, pendulum*,
periodo, trayector*, trajector*, aceleracion, acceleration, velocidad, velocity, fuerza*, force, forces,
energia, energy, inercia, inertia, momento angular, angular momentum, masa, trabajo y energia, campo,
field, fields, polaridad, polarity, ferro*, dipol*, vacio, vacuum, temperatura*, temperature*,
radiacion, radiation, infrarroj*, infrared, ultraviolet*, uv, sonido, sound, acustic*, acoustic*, ruido,
noise, decibel*, luz, light, color del cielo, sky blue, cielo azul, luna, moon, sol, sun, solar system,
sistema solar, planeta*, planet*, cometa*, comet*, asteroid*, meteor*, universo, universe, multivers*,
expande, expand*, simetria, symmetr*, logica, logic, semantica, semantics, automata*, automaton, turing,
godel, kripke, conjunto*, set theory, infinito*, infinit*, fractal*, caos, chaos, no lineal, nonlinear,
optimizacion, optimization, convex*, lineal*, linear, tensor*, topolog*, numeric*, iterativ*, test t,
t - test, mann, chi cuadrado, chi square*, p - value*, valor p, intervalo de confianza,
confidence interval*, anova, monte carlo, krebs, glucolisis, glycolys*, ciclo de, cycle, homeosta*,
nervio*, nerve*, musculo*, muscle*, hueso*, bone*, piel de gallina, goosebumps, retina, ojo, eye, oido,
ear, digest*, intestin*, estomago, stomach, microbiota, alergi*, allerg*, fiebre, inflamacion,
inflammation, ibuprofeno, ibuprofen, paracetamol, warfarin*, interacciones, interactions, farmacocin*,
pharmacokin*, gluten, levadura*, yeast, ferment*, maillard, emulsion*, soap, jabon, detergent*,
litograf*, lithograph*, sinteti*, synthe*, destila*, distill*, cromatograf*, chromatograph*,
electrolis*, nanotub*, nanotechnolog*, nanotecnolog*, grafeno, graphene, silicio, silicon, germanio,
dopado, doping, banda prohibida, band gap, superconduct*, superfluid*, fisica, physics, quimic*, chemi*,
biolog*, geolog*, astronom*, matematic*, mathemat*, estadistic*, statistic*, termodinam*, thermodynam*,
entrop*, entalp*, enthalp*, cuantic*, quantum, relativi*, gravedad, gravit*, magnet*, electromagnet*,
fotoelectric*, photoelectric, foton*, photon*, electron*, proton*, neutron*, quark*, boson*, atomo*,
atom*, molecul*, ion*, isotop*, radiactiv*, radioactiv*, fision, fission, fusion, plasma*, onda, ondas,
wave*, frecuencia*, frequenc*, longitud de onda, wavelength*, espectro*, spectr*, difraccion,
diffraction, interferencia, interference, refracc*, refract*, optic*, lente*, lens*, presion, pressure,
densidad, density, viscosi*, fluido*, fluid*, flotabilidad, buoyancy, calor especifico, specific heat,
conductividad, conductivit*, dilatacion, expansion, evapora*, condensa*, sublima*, cristal*, crystal*,
enlace*, bond*, covalen*, acido*, acid*, base, ph, sal, sales, reaccion*, reaction*, cataliz*, cataly*,
enzim*, enzym*, oxidacion, reduccion, redox, estequiometr*, stoichiom*, tabla periodica, periodic table,
hidrogeno, hydrogen, oxigeno, oxygen, nitrogeno, nitrogen, carbono, carbon, dioxido, dioxide, ozono,
ozone, metano, methane, celula*, cell, cells, cellular, adn, dna, arn, rna, arnm, mrna, gen, genes,
genetic*, genom*, cromosoma*, chromosom*, mitosis, meiosis, mitocondri*, mitochondri*, ribosom*,
proteina*, protein*, lipid*, hormona*, hormon*, insulin*, neurona*, neuron*, sinaps*, synap*,
neurotransmi*, cerebro, brain, corteza, cortex, sistema inmun*, immune*, inmun*, anticuerp*, antibod*,
vacuna*, vaccin*, virus, viral, bacteri*, antibiotic*, microb*, hongo*, fung*, fotosint*, photosynth*,
clorof*, chloroph*, osmosis, difusion, diffusion, membrana*, membrane*, metabol*, evolucion, evolution*,
seleccion natural, natural selection, mutacion*, mutation*, ecosistem*, ecosystem*, biodivers*,
placas tectonicas, tectonic*, terremoto*, earthquake*, volcan*, magma, sismic*, seismic*, marea*, tide*,
tidal, atmosfer*, atmospher*, efecto invernadero, greenhouse*, corriente marina, ocean current*,
huracan*, hurricane*, tornado*, ciclon*, nube*, rayo, rayos, lightning, arcoiris, rainbow*, aurora*,
eclipse*, agujero negro, agujeros negros, black hole*, supernova*, galaxi*, estrella de neutrones,
neutron star*, big bang, cosmolog*, doppler, integral*, derivad*, derivative*, matriz*, matrices,
matrix, vector*, autovalor*, eigen*, probabili*, bayes*, varianza, variance, desviacion tipica,
standard deviation, distribucion*, distribution*, regresion*, regression*, hipotesis, hypothesis,
muestreo, sampling, correlac*, correlat*, numero primo, numeros primos, prime number*, logaritm*,
logarithm*, fourier, laplace, euler, newton, einstein, maxwell, kepler, hubble, pitagoras, pythagor*,
geometr*, algebra*, calculo, calculus, teoria de juegos, game theory, inflacion, inflation,
macroeconom*, microeconom*, oferta y demanda, supply and demand, tipo de interes, interest rate*,
politica monetaria, monetary, derivados financieros, epidemiolog*, farmac*, pharmac*, dosis, dose*,
anestesi*, anesthe*, rinon*, kidney*, higado, liver, pancreas, corazon, heart, pulmon*, lung*, sangre,
blood, hemoglob*, arteri*, arter*, colesterol, cholest*, presion arterial, blood pressure, diabet*,
cancer*, tumor*, quimioterapia, chemotherap*, placebo, fosil*, fossil*, carbono 0, radiocarbon,
sediment*, erosion, roca*, rock formation*, mineral*, suelo, nitrato*, fertiliz*
"""
_FOOD = """
receta*, recipe*, cocina*, cook*, cena*, dinner, comida*, lunch, desayun*, breakfast, almuerzo*,
merienda, snack*, tortilla*, paella, arroz, rice, pasta, pizza, pan, bread, queso, cheese, huevo*, egg,
eggs, pollo, chicken, carne, meat, pescado, fish, verdura*, vegetable*, ensalada*, salad*, sopa*, soup*,
postre*, dessert*, tarta*, cake*, bizcocho, galleta*, cookie*, chocolate, fruta*, fruit*, manzana*,
apple pie, patata*, papas, potato*, tomate*, tomato*, cebolla*, onion*, ajo, garlic, aceite, vino*,
wine*, cerveza*, beer*, cafe, coffee, te, tea, zumo, juice, horno, oven, sarten, ingrediente*,
ingredient*, sabor*, flavor*, flavour*, vegan*, vegetarian*, restaurante*, restaurant*, bar, cocktail*,
tapas, gazpacho, lentejas, garbanzos, azucar, sugar, salsa*, sauce*
"""
_LIFE = """
hijo*, hija*, son, daughter, kid, kids, nino*, nina*, child, children, bebe*, baby, madre, mother, mom,
mum, mama, padre, father, dad, papa, abuel*, grandm*, grandp*, hermano*, hermana*, brother*, sister*,
tio, tia, aunt, uncle, primo, prima, cousin*, suegra*, suegro*, novio*, novia*, boyfriend*, girlfriend*,
marido, husband, mujer, wife, esposa, esposo, pareja, partner, amigo*, amiga*, friend*, vecin*,
neighbor*, neighbour*, companer*, roommate*, jefe*, jefa, boss, colleague*, coworker*, boda*, wedding*,
cumple*, birthday*, aniversario*, anniversar*, fiesta*, party, regalo*, regal*, gift*, navidad,
christmas, reyes, halloween, vacacion*, vacation*, holiday*, viaje*, viajar, trip, travel*, hotel*,
playa, beach, montana, maleta*, suitcase*, vuelo*, flight*, ciudad, city, visitar, visit, museo*,
museum*, fin de semana, weekend*, hoy, today, manana, tomorrow, noche, tonight, sueno, dormir, sleep*,
cansad*, tired, triste*, sad, feliz, happy, aburrid*, bored, nervios*, nervous, estres*, stress*,
ansiedad, anxi*, animo*, consejo*, advice, tip, tips, idea, ideas, recomienda*, recomenda*, recommend*,
sugier*, suggest*, motiva*, amor, love, querer, enamora*, cita, dating, discutir, argu*, perdon, sorry,
disculp*, apolog*, gracias, thanks, thank, hola, hello, hi, hey, buenos dias, buenas, good morning,
adios, bye, jaja*, haha*, lol, perro*, dog, dogs, gato*, cat, cats, mascota*, pet, pets, loro, hamster,
planta*, houseplant*, jardin, garden*, casa, house, piso, apartment*, habitacion, bedroom*, salon,
mueble*, furniture, limpiar, limpi*, clean*, lavadora, mancha*, stain*, ropa, clothes, camisa*, shirt*,
vestido*, dress, zapato*, shoe*, pelo, hair, piel, skin, maquillaje, makeup, gimnasio, gym, ejercicio*,
workout*, exercise*, correr, running, yoga, dieta*, diet, adelgazar, lose weight, dolor, dinero, money,
ahorr*, save money, compra*, buy*, shopping, barat*, cheap, alquil*, rent, trabajo, job, entrevista*,
interview*, sueldo, salary, curriculum, resume, cv, estudi*, study*, examen*, exam, exams, colegio,
school, universidad, university
"""
_LEISURE = """
chiste*, joke*, cuento*, story, stories, historia, poem*, poesia, verso*, rima*, rhyme*, cancion*,
song*, letra, lyrics, musica, music, grupo, band, guitarra, guitar, piano, pelicula*, movie*, film*,
serie, series, netflix, tv, actor*, actress*, actriz, director, libro*, book*, novela*, novel*, autor*,
author*, escritor*, writer*, pintor*, painter*, pinto, painted, cuadro*, painting*, juego*, game*,
videojuego*, ajedrez, chess, adivinanza*, riddle*, trivia, futbol, football, soccer, baloncesto,
basketball, tenis, tennis, ciclismo, cycling, natacion, swimming, mundial, world cup, olimp*, olympic*,
equipo, team, jugador*, player*, gano, won, capital de, capital of, pais*, country, countries,
poblacion, population, habitantes, rio, river*, lago, lake, oceano, rey, king, reina, queen,
presidente*, president*, guerra*, war, wars, imperio, empire, batalla, battle, siglo, century, romano*,
roman, descubri*, discover*, invent*, quien, who, cuando, when, donde, where, cuantos, cuantas, cuanto,
how many, how old, how tall, how long, how much, que dia, que hora, what time, what day, santo,
horoscopo*, horoscope*, signo, zodiac*, tarot, tradicion*, tradition*, costumbre*, leyenda*, legend*,
mitolog*, mytholog*, dios*, god, gods, curiosidad*, fun fact*, dato curioso, frase*, quote*, brindis,
toast, discurso*, speech, invitacion*, invitation*, carta, letter, correo, email, mensaje*, message,
felicita*, congrat*, nombre*, name, names, apodo*, nickname*, eslogan*, slogan*, titulo*, caption*,
haiku, refran*, proverb*, traba lenguas, trabalenguas
"""
_DOCUMENT = """
documento*, document, documents, informe*, report*, contrato*, contract*, tesis, thesis, manual entero,
libro entero, libro completo, entire book, whole book, paginas, pages, page, capitulo*, chapter*, acta,
actas, minutes, transcri*, resum*, summar*, anexo*, apartado*, paper, articulo completo, expediente,
sentencia completa, entero, entera, completo, completa, entire, whole, full, largo, long, subid*, subi,
upload*, adjunt*, attach*, enviad*, mandad*, mando, sent, pase, paso, aqui tienes, here is, here s,
factura*, invoice*, recibo*, receipt*, ticket, formulario escaneado, mapa, map, plano, planos,
blueprint*, menu, cartel*, poster*, etiqueta*, label*, radiograf*, ecografia, meme*, logo*, icono*,
firma, signature, matricula, plate, aparece*, appear*, ves, ve, se ve, se ven, veo, see, shown, shows,
sale, salen, muestra*, mira*, look at, describe*, this, esta, este, estas, estos, that, esa, ese,
color*, fondo, background, izquierda, left, derecha, right, arriba, above, below, abajo, esquina, corner
"""
_SOCIETY = """
religi*, iglesia*, church*, misa, mass, cura, priest*, vicar*, obispo*, bishop*, cardenal*, papa, pope,
monja*, nun, nuns, santos, saint*, biblia, bible, coran, koran, ramadan, ramadan*, januca, hanukkah,
diwali, semana santa, easter, cuaresma, lent, pascua, pentecost*, bautizo, baptism, christening,
comunion, communion, funeral*, entierro, burial, luto, mourning, procesion*, procession*, carnaval*,
carnival*, feria*, fair, festival*, fiestas, noche vieja, nochevieja, new year*, dia de la madre,
mother s day, dia del padre, father s day, san valentin, valentine*, thanksgiving, supersticion*,
superstition*, sonar con, dream of, dream about, ouija, fantasma*, ghost*, ayuntamiento*, town hall,
council, padron, empadron*, dni, nie, pasaporte*, passport*, visado*, visa, visas, itv, carnet,
carne de conducir, driving licen*, driving test, multa*, fine, fines, impuesto*, tax, taxes, renta,
hacienda, irpf, autonomo*, freelanc*, nomina*, payslip*, paro, unemployment, jubila*, retire*, pension*,
baja laboral, sick leave, vacaciones, despido*, despid*, fired, laid off, hipoteca*, mortgage*,
herencia*, inherit*, testamento, will, notario, notary, abogado*, lawyer*, juicio, trial, demanda*, sue,
divorcio*, divorce*, custodia, custody, seguro*, insurance, bono social, factura de la luz,
electricity bill, energy bill, ambulatorio*, centro de salud, medico, doctor, gp, dentista*, dentist*,
hospital*, urgencias, cita previa, appointment*, lista de espera, waiting list, farmacia*, pharmacy,
vecino*, comunidad de vecinos, piscina, swimming pool, portero, oposicion*, selectividad, ebau, beca*,
scholarship*, erasmus, matricularme, enrol*, enroll*, deberes, homework, profesor*, teacher*, maestra,
guarderia, nursery, daycare, universitari*, master, practicas, internship*, voluntari*, volunteer*,
adoptar, adopt*, mudanza*, mudar*, moving house, roomm*, trastero*, taller, coche de segunda mano,
used car, tren, train, trains, autobus*, bus, buses, metro, subway, taxi*, aeropuerto*, airport*,
equipaje, luggage, crucero*, cruise*, camping, autocaravana, campervan, hostal*, hostel*, airbnb,
propina*, tip the, tipping, etiqueta social, etiquette, dress code, codigo de vestimenta,
protocolo de boda, fuera de juego, offside, penalti*, penalty, liga, league, champions, nba, nfl, copa,
torneo*, tournament*, maraton*, marathon*, entrenador*, coach, arbitro*, referee*, gimnasia, padel,
golf, surf*, esqui*, ski, skiing, senderismo, hiking, trekking, camino de santiago, pesca, fishing,
caza, mus, poker, parchis, domino, bingo, loteria, lottery, apuesta*, bet, bets, porra, concurso*, quiz,
karaoke, discoteca*, nightclub*, concierto*, concert*, teatro, theatre, theater, opera, ballet, circo,
circus, comedia*, comedy, drama, terror, horror, streaming, podcast*, youtuber*, influencer*, instagram,
tiktok, whatsapp, tinder, meme, famos*, celebrit*, cantante*, singer*, pelicul*, oscars, eurovision,
torre*, tower*, monumento*, monument*, catedral*, cathedral*, castillo*, castle*, palacio*, palace*,
capitales, capitals, bandera*, flag, flags, himno*, anthem*, frontera*, border*, isla*, island*,
montanas, mountain*, altura de, height of, moneda de, currency of, edad de, age of, nacio, born, murio,
died, biografia*, biography, vida de, life of, reinado, dinastia, dynasty, revolucion*, revolution*,
independencia, independence, dictadura*, elecciones, election*, gobierno*, government*, parlamento,
parliament, brunch, tapeo, merendar, picnic*, barbacoa*, barbecue*, bbq, sidra, cider, whisky, gin, ron,
tequila, mezcal, mate, infusion*, herbal tea, nevera, fridge, despensa, pantry, congelador, freezer,
sobras, leftover*, menu semanal, meal plan*, lista de la compra, shopping list, dieta, ayuno, fasting,
calorias, calorie*, insomnio, insomnia, ronca*, snor*, resaca, hangover*, resfriado, cold, tos, cough,
fiebre, fever, piojos, lice, mosquito*, cucaracha*, cockroach*, hormigas, ants, periquito*, canario,
conejo*, rabbit*, cachorro*, puppy, puppies, gatito*, kitten*, arenero, litter, veterinari*, vet, vets,
peluquer*, haircut*, barba*, beard*, unas, nails, perfume*, tatuaje*, tattoo*, piercing*, talla*,
outfit*, combina*, look, decora*, decorat*, pintar, cortina*, curtain*, sofa*, cojin*, colada, laundry,
plancha*, ironing, polvo, dust, moho, mould, mold, atasc*, clog*, bombilla*, light bulb*
"""
_STEMS = {
    "coding": _CODING,
    "picture": _PICTURE,
    "translation": _TRANSLATION,
    "language name": _LANGUAGE_NAME,
    "program": _PROGRAM,
    "make": _MAKE,
    "explain": _EXPLAIN,
    "computing": _COMPUTING,
    "engineering": _ENGINEERING,
    "science": _SCIENCE,
    "food": _FOOD,
    "life": _LIFE,
    "leisure": _LEISURE,
    "society": _SOCIETY,
    "document": _DOCUMENT,
}
CONCEPTS: tuple[str, ...] = tuple(_STEMS)
_ACCENTS = re.compile(r"[\u0300-\u036f]")
_TOKEN = re.compile(r"\w+\*?|[^\w\s*]+")


def strip_accents(text: str) -> str:
    """`mañana` -> `manana`: many people type without them. Marks of other scripts than the European stay."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed))


# Whole words and beginnings are looked up word by word: many times quicker than one long alternation.
_WHOLE: dict[str, tuple[int, ...]] = {}
_BEGINNING: dict[str, tuple[int, ...]] = {}
_ANYWHERE: list[tuple[int, re.Pattern[str]]] = []
PHRASES: dict[str, tuple[tuple[int, tuple[str, ...]], ...]] = {}
"""First token -> (place in `CONCEPTS`, tokens of the phrase). A star at the end of the last token leaves its
ending open."""


def _add(table: dict[str, tuple[int, ...]], stem: str, concept: int) -> None:
    if concept not in table.get(stem, ()):
        table[stem] = (*table.get(stem, ()), concept)


def _sort_in(concept: int, stems: str) -> None:
    anywhere: list[str] = []
    for stem in (" ".join(stem.split()) for stem in strip_accents(stems).split(",")):
        parts = _TOKEN.findall(stem)
        if stem.startswith("*"):
            anywhere.append(re.escape(stem.strip("*")))
        elif len(parts) > 1:
            PHRASES[parts[0]] = (*PHRASES.get(parts[0], ()), (concept, tuple(parts)))
        elif stem.endswith("*"):
            _add(_BEGINNING, stem.rstrip("*"), concept)
        else:
            _add(_WHOLE, stem, concept)
    if anywhere:
        _ANYWHERE.append((concept, re.compile("|".join(anywhere))))


for _concept, _listed in enumerate(_STEMS.values()):
    _sort_in(_concept, _listed)
_LONGEST_BEGINNING = max(map(len, _BEGINNING))


def concepts_of_word(word: str) -> tuple[int, ...]:
    """Places in `CONCEPTS` of what a case-folded word without accents names."""
    found = set(_WHOLE.get(word, ()))
    for length in range(2, min(len(word), _LONGEST_BEGINNING) + 1):
        found.update(_BEGINNING.get(word[:length], ()))
    if not word.isascii():
        found.update(concept for concept, pattern in _ANYWHERE if pattern.search(word))
    return tuple(sorted(found))
