/* Written by native/write_layout.py from asgi_ipc/store/layout.py. Do not edit; run the script. */

#ifndef ASGI_IPC_LAYOUT_H
#define ASGI_IPC_LAYOUT_H

/* Of all numbers of layout.py: the Python code uses what is compiled only if it has the same. */
#define FINGERPRINT 0x87caaf55

#define CHECKED 65536 /* bytes of the largest message that is usual */

/* Of wakes.py: seconds, and what is added to the id of a waiter that was parked, or leaves. */
#define QUICK 5e-05
#define UNDER_WAY 0.002
#define WOKEN 65536
#define LEAVING 131072

/* Of upkeep.py and unchanged.py: seconds, and the word that counts the members of all groups. */
#define CHECK_EVERY 1.0
#define SWEEP_EVERY 1.0
#define SWEEP_SOON 0.1
#define SWEPT_WITHIN 60.0
#define MEMBERS 82

#define WORD 8
#define RECORD_WORDS 8
#define QUEUE_WORDS 78
#define LOCK_BYTES 64
#define H_LOCK 32
#define S_DIRTY 40
#define S_ENDS 41
#define HALF_TAIL 82
#define HALF_HEAD 83
#define S_SEQ 42
#define S_LIVE 43
#define S_BIGGEST 45
#define S_LIMIT 50
#define S_COUNTER 46
#define S_SWEEP_AT 54
#define S_BURY_AT 55
#define CLEAN 0
#define DIRTY 1
#define R_GENERATION 2
#define Q_FIRST 4
#define Q_LAST 5
#define Q_PENDING 6
#define Q_SENT 11
#define Q_WAITING 18
#define Q_WAITERS 19
#define WAITER_SET_WORDS 17
#define Q_RUNG 75
#define Q_QUICK 76
#define Q_OWED 77
#define L_SIZE 0
#define L_STATE 1
#define L_SEQ 1
#define L_NEXT 2
#define L_PREV 3
#define L_QUEUE 8
#define L_LENGTH 9
#define L_EXPIRES 5
#define L_SENT 6
#define L_LOCALS 14
#define L_CHECK 15
#define LIVE 1
#define DEAD 2

#endif
