SSELEC______________________¦ FROM imagesÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿÿdd(i WHERE 0.5 > ?7 <=, embedding <=> :q FROM images ORDER BY 2;
SELECT id, images.distance Fg <=> :q d FROM images ORDER BY 2;
SELEr(SEL:{WITH images AS (SELECT 1 AS embedding) SELECT id FROM imagesSELECT path, taken_at, score FROM OM sr(SEL:{OM sii*/ii*/images WHERE taken_at >= '2023-01-01' AND camera LIKE 'X100%' ORDER N IMIT (10)) AS images(?1H W)ERE camera = 'x' AND images.distance <= 0.4 AND images.distance > 0.1;
SELECT id FROM images WHERE id BET©©©©©©©©©©©©©©©©©©©WEEN 1 AND 9 AT aIS NOT DISTINCT FROM imaIN imagISTINCT FROM, [><,=] `<7>b", [><,= $<7>b", [><,=] `<=>` -- <=>
=>` -- <=>
/SELECT`text F®¦M` WHEN SELECT aIS NOT DISTINCT FROM imaIN imagISTINCT FROM ima `<4>b", [><,=] `<=>Š -- <=>
=>` -- <=>
/SELECT`ext ÊF®¦M` WHEN nsLECT '<=', "a<=>b", [>><,=] `<7>b", [><,=] `"=>` -- <=>
=>` -- <=>
/SELECT`text F®¦M` WHEN SELECT aIS NOT DISTINCTCT 
, cosine_d FROM imaIN imagISTINCT FROM, [><,=] `<7>b", [><,=] `<=>` -- <=>
=>` -- <=>
/SELECT`text ÊF®¦M` WHEN nsLECT '<=', "a<=>b", [>><,=] `<7>b", [><,=] `<=>` -- <=>
=0` -istance(embedding , ?1) d FROM images ORDER BY 2;
SELECT * FROM imve\_add(i WHERE 0.5 > ?7 <-