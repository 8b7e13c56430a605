use super::*;

/// A pool whose threads all take part, however few CPUs there are.
fn pool(threads: usize) -> Pool {
    let pool = Pool::new(threads);
    pool.use_all_threads();
    pool
}

#[test]
fn every_step_begins_when_the_one_before_is_done() {
    for threads in 1..=5 {
        let pool = pool(threads);
        let cells: Vec<AtomicU64> = (0..40).map(|_| AtomicU64::new(0)).collect();
        let wrong = AtomicU64::new(0);
        for round in 1..=200u64 {
            pool.run(&|w| {
                for step in 0..6u64 {
                    let value = round * 10 + step;
                    w.step(40, 1 + step as usize, |part| {
                        part.for_each(|i| cells[i].store(value, Ordering::Relaxed));
                    });
                    w.step(7, 1, |_| {
                        let late = cells.iter().filter(|c| c.load(Ordering::Relaxed) != value).count();
                        wrong.fetch_add(late as u64, Ordering::Relaxed);
                    });
                }
            })
            .unwrap();
        }
        assert_eq!(wrong.load(Ordering::Relaxed), 0, "{threads} threads");
    }
}

#[test]
fn steps_visit_every_index_once() {
    let pool = pool(3);
    let counts: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
    for round in 1..=50 {
        pool.run(&|w| {
            for (count, grain) in [(1000, 7), (13, 100), (0, 3), (1000, 1), (1000, 0)] {
                w.step(count, grain, |part| {
                    assert!(part.len() <= grain.max(1) && !part.is_empty());
                    part.for_each(|i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                });
            }
        })
        .unwrap();
        for (i, c) in counts.iter().enumerate() {
            let want = round * if i < 13 { 4 } else { 3 };
            assert_eq!(c.load(Ordering::Relaxed), want, "index {i} round {round}");
        }
    }
}

#[test]
fn settled_steps_are_done() {
    let pool = pool(3);
    let sum = AtomicU64::new(0);
    pool.run(&|w| {
        for step in 1..=50 {
            w.step(30, 1, |_| _ = sum.fetch_add(1, Ordering::Relaxed));
            if w.index == 0 {
                w.settle();
                assert!(sum.load(Ordering::Relaxed) >= 30 * step);
            }
        }
    })
    .unwrap();
    assert_eq!(sum.load(Ordering::Relaxed), 1500);
}

#[test]
fn nobody_waits_for_a_thread_without_work() {
    let pool = pool(4);
    let nap = Duration::from_millis(300);
    let begin = Instant::now();
    let sum = AtomicU64::new(0);
    let through = Mutex::new(Duration::MAX);
    pool.run(&|w| {
        // As if its core were taken away, before a step and between two.
        if w.index == 2 {
            std::thread::sleep(nap);
        }
        for step in 0..100 {
            if w.index == 3 && step == 1 {
                std::thread::sleep(nap);
            }
            w.step(64, 1, |part| _ = sum.fetch_add(part.start as u64, Ordering::Relaxed));
        }
        if w.index == 0 {
            w.settle();
            *through.lock().unwrap() = begin.elapsed();
        }
    })
    .unwrap();
    assert_eq!(sum.load(Ordering::Relaxed), 100 * 63 * 64 / 2);
    let through = through.into_inner().unwrap();
    assert!(through < nap / 2, "the steps took {through:?} beside sleepers of {nap:?}");
}

#[test]
fn a_part_that_takes_long_is_waited_for_asleep() {
    let pool = pool(3);
    let slow = AtomicU64::new(0);
    let seen = AtomicU64::new(0);
    pool.run(&|w| {
        w.step(3, 1, |part| {
            if part.start == 1 {
                std::thread::sleep(Duration::from_millis(50));
                slow.store(1, Ordering::Relaxed);
            }
        });
        w.step(1, 1, |_| seen.store(slow.load(Ordering::Relaxed), Ordering::Relaxed));
    })
    .unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert_eq!(pool.shared.waiting.sleepers.0.load(Ordering::SeqCst), 0, "everybody woke up again");
}

/// Runs `test` on a thread that may use one CPU alone, and so may the threads that it starts.
#[cfg(target_os = "linux")]
fn on_one_cpu(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: a plain bit set, for which zero is valid; the call reads and writes at most its size.
            let narrowed = unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
                let first = (0..libc::CPU_SETSIZE as usize).find(|i| libc::CPU_ISSET(*i, &set)).unwrap();
                libc::CPU_ZERO(&mut set);
                libc::CPU_SET(first, &mut set);
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
            };
            assert_eq!(narrowed, 0);
            test();
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn sixty_four_threads_on_one_cpu_finish() {
    on_one_cpu(|| {
        let begin = Instant::now();
        for all in [true, false] {
            let pool = Pool::new(64);
            if all {
                pool.use_all_threads();
            } else {
                assert_eq!(pool.team(), 1, "threads without a CPU take no part");
            }
            let sums: Vec<AtomicU64> = (0..50).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..10 {
                pool.run(&|w| {
                    for sum in &sums {
                        w.step(100, 3, |part| {
                            let sum_of_part = part.map(|i| i as u64).sum();
                            sum.fetch_add(sum_of_part, Ordering::Relaxed);
                        });
                    }
                })
                .unwrap();
            }
            assert!(sums.iter().all(|s| s.load(Ordering::Relaxed) == 10 * 4950));
        }
        // Threads that spin or yield for each other need a time slice each, for each of 500 steps: minutes.
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

#[test]
fn no_more_threads_than_cpus_take_part() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let pool = Pool::new(cpus + 3);
    assert_eq!((pool.threads(), pool.team()), (cpus + 3, cpus));
    let seen = AtomicUsize::new(0);
    pool.run(&|w| _ = seen.fetch_max(w.index + 1000 * w.threads(), Ordering::Relaxed)).unwrap();
    let seen = seen.load(Ordering::Relaxed);
    assert!(seen / 1000 == cpus && seen % 1000 < cpus, "{seen}");
}

#[test]
fn refused_threads_are_done_without() {
    for granted in 0..4 {
        let pool = Pool::start(8, |index, work| {
            if index > granted {
                return Err(std::io::Error::from(std::io::ErrorKind::WouldBlock));
            }
            std::thread::Builder::new().spawn(work)
        });
        pool.use_all_threads();
        assert_eq!(pool.threads(), granted + 1);
        let sum = AtomicU64::new(0);
        pool.run(&|w| {
            assert!(w.index <= granted);
            // A thread alone is given all of the step at once.
            w.step(100, 1, |part| _ = sum.fetch_add(part.map(|i| i as u64).sum(), Ordering::Relaxed));
        })
        .unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
    }
}

#[test]
fn sleeps_and_wakes() {
    let pool = pool(3);
    let total = AtomicU64::new(0);
    let add = |w: &Worker| w.step(9, 1, |part| _ = total.fetch_add(part.start as u64, Ordering::Relaxed));
    for round in 0..20 {
        pool.run(&add).unwrap();
        std::thread::sleep(Duration::from_micros(300 * (round % 5)));
    }
    let begin = Instant::now();
    while !pool.shared.asleep[1..].iter().all(|a| a.load(Ordering::SeqCst)) {
        assert!(begin.elapsed() < Duration::from_secs(20), "idle workers must park");
        std::thread::sleep(Duration::from_millis(5));
    }
    pool.run(&add).unwrap();
    assert_eq!(total.load(Ordering::Relaxed), 21 * 36);
    // A thread that was asleep comes when there is a region for it.
    let woken = AtomicBool::new(false);
    pool.run(&|w| {
        if w.index == 1 {
            woken.store(true, Ordering::SeqCst);
        }
        let begin = Instant::now();
        while w.index == 0 && !woken.load(Ordering::SeqCst) {
            assert!(begin.elapsed() < Duration::from_secs(20), "worker 1 slept through a region");
            std::thread::yield_now();
        }
    })
    .unwrap();
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives_on() {
    let pool = pool(4);
    for round in 0..40 {
        let victim = round % 10;
        let error = pool
            .run(&|w| {
                w.step(100, 1, |_| {});
                w.step(10, 1, |part| {
                    if part.start == victim {
                        std::panic::panic_any(format!("broken at {victim}"));
                    }
                });
                w.step(10, 1, |_| {});
            })
            .unwrap_err();
        assert_eq!(error.to_string(), format!("broken at {victim}"));
        let sum = AtomicU64::new(0);
        pool.run(&|w| w.step(10, 1, |part| _ = sum.fetch_add(part.start as u64, Ordering::Relaxed))).unwrap();
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
