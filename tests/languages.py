# ruff: noqa: RUF001
"""Short texts as customers, developers and machines write them, in several languages."""

from __future__ import annotations

TEXTS: dict[str, list[str]] = {
    "English": [
        "My parcel was supposed to arrive on Monday and it is still not here.",
        "How do I return the blue jacket? It does not fit and I lost the receipt.",
        "Great service, the lady on the phone was very patient with me. Thank you!",
        "I was charged twice for the same order, please give me my money back.",
        "The app crashes as soon as I open the settings on my old phone.",
        "Can I change the delivery address after the order has been placed?",
    ],
    "French": [
        "Mon colis devait arriver lundi et je ne l'ai toujours pas reçu.",
        "Comment puis-je renvoyer la veste bleue ? Elle est trop petite et j'ai perdu le ticket.",
        "Excellent service, la dame au téléphone a été très patiente avec moi. Merci beaucoup !",
        "On m'a débité deux fois pour la même commande, rendez-moi mon argent s'il vous plaît.",
        "L'application se ferme dès que j'ouvre les réglages sur mon vieux téléphone.",
        "Est-ce que je peux changer l'adresse de livraison après avoir commandé ?",
    ],
    "German": [
        "Mein Paket sollte am Montag ankommen und ist immer noch nicht da.",
        "Wie kann ich die blaue Jacke zurückschicken? Sie passt nicht und der Beleg ist weg.",
        "Hervorragender Kundendienst, die Dame am Telefon war sehr geduldig. Vielen Dank!",
        "Mir wurde dieselbe Bestellung zweimal berechnet, bitte überweisen Sie das Geld zurück.",
        "Die Anwendung stürzt ab, sobald ich auf meinem alten Handy die Einstellungen öffne.",
        "Kann ich die Lieferanschrift nach der Bestellung noch ändern?",
    ],
    "Hindi": [
        "मेरा पार्सल सोमवार को आना था और अभी तक नहीं आया है।",
        "मैं नीली जैकेट कैसे वापस करूँ? वह छोटी है और रसीद खो गई है।",
        "बहुत अच्छी सेवा, फ़ोन पर महिला ने बड़े धैर्य से मेरी बात सुनी। धन्यवाद!",
        "एक ही ऑर्डर के लिए मुझसे दो बार पैसे लिए गए, कृपया मेरे पैसे लौटा दीजिए।",
        "मेरे पुराने फ़ोन पर सेटिंग खोलते ही ऐप बंद हो जाता है।",
        "क्या मैं ऑर्डर देने के बाद डिलीवरी का पता बदल सकता हूँ?",
    ],
    "Russian": [
        "Моя посылка должна была прийти в понедельник, но её до сих пор нет.",
        "Как вернуть синюю куртку? Она мне мала, а чек я потерял.",
        "Отличное обслуживание, девушка по телефону была очень терпелива. Спасибо!",
        "С меня дважды сняли деньги за один и тот же заказ, верните их, пожалуйста.",
        "Приложение закрывается, как только я открываю настройки на старом телефоне.",
        "Можно ли изменить адрес доставки после оформления заказа?",
    ],
    "Chinese": [
        "我的包裹本来应该星期一到，现在还没有收到。",
        "蓝色的外套怎么退货？尺码太小，小票也丢了。",
        "服务非常好，电话里的女士很有耐心，谢谢！",
        "同一个订单扣了我两次钱，请把钱退给我。",
        "在我的旧手机上，一打开设置应用就闪退。",
        "下单以后还可以修改收货地址吗？",
    ],
    "log lines": [
        "2026-01-31 12:00:03,211 ERROR [worker-7] db.pool: connection to 10.0.4.17:5432 refused",
        "WARN http: GET /api/v2/orders/81723 took 5.3 s, status 504, client 192.168.1.20",
        "INFO scheduler: job nightly_backup finished in 812 s, 3 files skipped",
        "kernel: Out of memory: Killed process 20413 (java) total-vm:8123456kB",
        "ERROR payment-service: timeout after 30000 ms calling https://bank.example/charge",
        "disk /dev/sda1 is 93 % full, 12.4 GB left on host web-03",
    ],
    "code": [
        "def total(items): return sum(item.price * item.count for item in items)",
        "if (response.status !== 200) { throw new Error('request failed'); }",
        "SELECT name, count(*) FROM orders WHERE created_at > now() GROUP BY name;",
        "for (int i = 0; i < length; i++) { buffer[i] = input[i] ^ key; }",
        "import numpy as np\nvalues = np.zeros((rows, columns))",
        "git commit -m 'Fix the reader of empty files' && git push origin main",
    ],
}
