"""How long handles live: copies, threads, forks, signals, and the end of Python. What could end a process runs in one of its own."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Callable, List

import pytest

import v2l
from conftest import IMAGE, PROMPT, REQUEST

#: What every program begins with. A video of `LONG` takes minutes unless it is stopped.
BEGIN = """
import atexit, copy, ctypes, gc, os, signal, sys, threading, time
import v2l
ENGINES, IMAGE = sys.argv[1:]
REQUEST = dict(num_frames=9, num_inference_steps=4, guidance_scale=1.0, seed=43, image=IMAGE)
LONG = dict(REQUEST, num_frames=97, num_inference_steps=1000)
"""


def program(engines: Path, text: str, wait: float = 120) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a process of its own; one that hangs ends the test."""
    words = [sys.executable, "-X", "faulthandler", "-c", BEGIN + textwrap.dedent(text), str(engines), str(IMAGE)]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=wait)


def prints(engines: Path, text: str, expected: str) -> None:
    """A program that prints what is expected and ends well."""
    ran = program(engines, text)
    assert (ran.returncode, ran.stdout) == (0, expected), ran.stderr


def test_handles_are_not_copied_or_pickled(engines: Path) -> None:
    with v2l.Pipeline(engines) as pipeline:
        engine = pipeline.engine("transformer")
        for handle in (pipeline, engine, v2l.Cancel()):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    attempt(handle)


def test_copy_of_a_handle_does_not_outlive_it(engines: Path) -> None:
    prints(engines, """
        p = v2l.Pipeline(ENGINES)
        try:
            q = copy.copy(p)
        except TypeError:
            q = p
        del p
        gc.collect()
        print(len(q.generate("a disc", **REQUEST)["frames"]))
    """, "9\n")


def test_closed_handle_is_refused(engines: Path) -> None:
    engine = v2l.Engine(engines / "transformer.engine")
    engine.close()
    engine.close()
    uses: List[Callable[[], Any]] = [lambda: engine.slots, lambda: v2l.Session(engine, "step"), lambda: engine.inputs("step")]
    for use in uses:
        with pytest.raises(v2l.Error, match="this Engine is closed") as refused:
            use()
        assert refused.value.name == "V2L_ERROR_NULL"


def test_close_in_another_thread_lets_the_call_end(engines: Path) -> None:
    prints(engines, """
        p = v2l.Pipeline(ENGINES)
        adapter = v2l.Predictor(ENGINES).predict(IMAGE)
        frames, begun = [], threading.Event()
        def work():
            frames.extend(p.generate("a disc", progress=lambda *_: begun.set(), adapters=[(adapter, 1.0)], **REQUEST)["frames"])
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        adapter.close()
        p.close()
        del p, adapter
        thread.join()
        print(len(frames))
    """, "9\n")


def test_close_in_another_thread_leaves_what_is_being_read(engines: Path) -> None:
    prints(engines, """
        def closed_while(handle, read):
            begun, found = threading.Event(), []
            def work():
                try:
                    while True:
                        found.append(len(read(handle)))
                        begun.set()
                except v2l.Error as error:
                    assert "closed" in str(error), error
            thread = threading.Thread(target=work)
            thread.start()
            begun.wait()
            handle.close()
            thread.join()
            return set(found)
        predictor = v2l.Predictor(ENGINES)
        for _ in range(10):
            print(closed_while(v2l.Engine(ENGINES + "/transformer.engine"), lambda engine: engine.slots))
            print(closed_while(predictor.predict(IMAGE), lambda adapter: adapter.layers))
    """, "{37}\n{37}\n" * 10)


def test_handle_of_another_kind_among_adapters_is_an_error(engines: Path) -> None:
    prints(engines, """
        p = v2l.Pipeline(ENGINES)
        try:
            p.generate("a disc", adapters=[(p, 1.0)], **REQUEST)
        except TypeError as error:
            print(error)
    """, "adapter is a Pipeline; expected an Adapter\n")


def test_library_knows_handles_of_another_kind(engines: Path) -> None:
    prints(engines, """
        library = ctypes.CDLL(v2l._library.LIBRARY._name)
        library.v2l_last_error.restype = ctypes.c_char_p
        p = v2l.Pipeline(ENGINES)
        handle = p._owner.pointer
        count = ctypes.c_size_t()
        print(library.v2l_adapter_layer_count(handle, ctypes.byref(count)), library.v2l_last_error().decode())
        library.v2l_adapter_free(handle)
        print(library.v2l_last_error().decode())
        print(len(p.generate("a disc", **REQUEST)["frames"]))
    """, "2 `adapter` is a v2l_pipeline; expected a v2l_adapter\n`handle` is a v2l_pipeline; expected a v2l_adapter\n9\n")


#: Ways to be inside the library on a daemon thread as Python ends.
BUSY = {
    "progress": 'p.generate("a disc", progress=lambda *_: begun.set(), **LONG)',
    "slow progress": 'p.generate("a disc", progress=lambda *_: (begun.set(), time.sleep(0.2)), **LONG)',
    "no progress": '(begun.set(), p.generate("a disc", **LONG))',
    "log": '(v2l.set_log(lambda *_: time.sleep(0.01)), begun.set(), [v2l.Adapter(p.engine("transformer"), FILE) for _ in range(10**6)])',
    "opening": '(begun.set(), [v2l.Pipeline(ENGINES) for _ in range(10**6)])',
    "reading": '(begun.set(), [v2l.Engine(ENGINES + "/transformer.engine").slots for _ in range(10**6)])',
}


@pytest.mark.parametrize("way", BUSY)
def test_daemon_thread_inside_a_call_does_not_keep_python_from_ending_well(engines: Path, tmp_path: Path, way: str) -> None:
    with v2l.Predictor(engines) as predictor:
        predictor.predict(IMAGE).save(tmp_path / "a.safetensors")
    ran = program(engines, f"""
        FILE = {str(tmp_path / "a.safetensors")!r}
        p, begun = v2l.Pipeline(ENGINES), threading.Event()
        def work():
            try:
                {BUSY[way]}
            except v2l.Error as error:
                assert error.name == "V2L_ERROR_CANCELLED", error
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        time.sleep(0.2)
        print("the end")
    """)
    assert (ran.returncode, ran.stdout) == (0, "the end\n"), ran.stderr


def test_handles_that_live_as_python_ends_are_freed_or_left(engines: Path) -> None:
    prints(engines, """
        p = v2l.Pipeline(ENGINES)
        p.generate("a disc", **REQUEST)
        cycle = {"handle": v2l.Engine(ENGINES + "/transformer.engine"), "pipeline": p}
        cycle["itself"] = cycle
        sys.kept = cycle
        v2l.set_log(print)
        class Late:
            def __del__(self):
                try:
                    p.generate("a disc", **REQUEST)
                except Exception as error:
                    pass
        late = Late()
        atexit.register(lambda: print(len(p.generate("a disc", **REQUEST)["frames"])))
    """, "9\n")


def test_call_as_python_ends_is_refused(engines: Path) -> None:
    prints(engines, """
        from v2l import _handles
        p = v2l.Pipeline(ENGINES)
        @atexit.register
        def first():
            _handles._end()
            try:
                p.generate("a disc", **REQUEST)
            except v2l.Error as error:
                print(error.name, error)
    """, "V2L_ERROR_CANCELLED Python is ending; no call begins any more\n")


@pytest.mark.parametrize("use", [
    'p.generate("a disc", **REQUEST)', "p.set_adapters([])", 'v2l.Pipeline(ENGINES).generate("a disc", **REQUEST)', "v2l.set_log(print)",
    'p.engine("transformer")',
])
def test_child_of_a_fork_is_told_so_and_ends_well(engines: Path, use: str) -> None:
    prints(engines, f"""
        p = v2l.Pipeline(ENGINES, threads=2)
        p.generate("a disc", **REQUEST)
        child = os.fork()
        if child == 0:
            try:
                {use}
                print("went on")
            except v2l.Error as error:
                print(error.name, "spawn" in str(error))
            p.close()
            del p
            gc.collect()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(p.generate("a disc", **REQUEST)["frames"]))
    """, "V2L_ERROR_UNSUPPORTED True\n7 9\n")


def test_library_refuses_the_child_of_a_fork_by_itself(engines: Path) -> None:
    prints(engines, """
        library = ctypes.CDLL(v2l._library.LIBRARY._name)
        library.v2l_last_error.restype = ctypes.c_char_p
        p = v2l.Pipeline(ENGINES)
        p.generate("a disc", **REQUEST)
        count, engine = ctypes.c_size_t(), p.engine("transformer")
        child = os.fork()
        if child == 0:
            print(library.v2l_engine_slot_count(engine._owner.pointer, ctypes.byref(count)), "is a fork of" in library.v2l_last_error().decode())
            library.v2l_pipeline_free(p._owner.pointer)
            sys.stdout.flush()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(p.generate("a disc", **REQUEST)["frames"]))
    """, "4 True\n7 9\n")


def test_child_of_a_fork_in_a_progress_function_does_not_wait_for_the_call(engines: Path) -> None:
    prints(engines, """
        p, child = v2l.Pipeline(ENGINES), []
        def fork(*_):
            if not child:
                sys.stdout.flush()
                child.append(os.fork())
        try:
            frames = p.generate("a disc", progress=fork, **REQUEST)["frames"]
            print(os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]), len(frames))
        except v2l.Error as error:
            print(error.name)
            sys.exit(7)
    """, "V2L_ERROR_UNSUPPORTED\n7 9\n")


def test_fork_before_the_first_handle_works_on_both_sides(engines: Path) -> None:
    prints(engines, """
        child = os.fork()
        print(len(v2l.Pipeline(ENGINES).generate("a disc", **REQUEST)["frames"]))
        if child == 0:
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """, "9\n9\n7\n")


def test_processes_of_multiprocessing_by_fork_are_told_so_and_by_spawn_work(engines: Path, tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(BEGIN + textwrap.dedent("""
        import multiprocessing
        def work(_):
            try:
                with v2l.Pipeline(ENGINES) as p:
                    return len(p.generate("a disc", **REQUEST)["frames"])
            except v2l.Error as error:
                return error.name
        if __name__ == "__main__":
            work(0)
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(pool.map(work, [0]))
    """))
    ran = subprocess.run([sys.executable, script, engines, IMAGE], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "['V2L_ERROR_UNSUPPORTED']\n[9]\n"), ran.stderr


#: Ways to wait for a video on the main thread.
LONG_CALLS = {
    "generate": 'p.generate("a disc", **LONG)',
    "generate with progress": 'p.generate("a disc", progress=lambda *_: None, **LONG)',
    "generate to a file": 'p.generate("a disc", file=os.environ["OUT"], **LONG)',
    "generate with a request": 'p.generate("a disc", cancel=v2l.Cancel(), **LONG)',
}


@pytest.mark.parametrize("call", LONG_CALLS)
def test_ctrl_c_ends_a_call_within_a_step(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out.mp4"))
    prints(engines, f"""
        p = v2l.Pipeline(ENGINES)
        p.generate("a disc", **REQUEST)
        sent = []
        def press():
            time.sleep(1.0)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=press).start()
        try:
            {LONG_CALLS[call]}
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - sent[0] < 5)
        print(len(p.generate("a disc", **REQUEST)["frames"]))
    """, "interrupted True\n9\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_signal_raises_comes_out_of_the_call_and_what_it_does_not_raise_lets_it_go_on(engines: Path) -> None:
    prints(engines, """
        p, seen = v2l.Pipeline(ENGINES), []
        def alarm(*_):
            seen.append(time.monotonic())
            if len(seen) > 3:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise TimeoutError("late")
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
        try:
            p.generate("a disc", **LONG)
        except TimeoutError as error:
            print(error, len(seen), time.monotonic() - seen[-1] < 5)
    """, "late 4 True\n")


def test_ctrl_c_is_not_lost_in_the_function_of_the_log(engines: Path, tmp_path: Path) -> None:
    with v2l.Predictor(engines) as predictor:
        predictor.predict(IMAGE).save(tmp_path / "a.safetensors")
    prints(engines, f"""
        engine, told = v2l.Engine(ENGINES + "/transformer.engine"), []
        def log(level, message):
            # As signals come while the library works, before it calls the log.
            told.append(message)
            os.kill(os.getpid(), signal.SIGINT)
        v2l.set_log(log)
        interrupted = 0
        for _ in range(20):
            try:
                v2l.Adapter(engine, {str(tmp_path / "a.safetensors")!r})
            except KeyboardInterrupt:
                interrupted += 1
        print(interrupted, len(told))
    """, "20 20\n")


def test_call_from_a_signals_handler_during_a_call_is_refused_but_for_requests_to_stop(engines: Path) -> None:
    prints(engines, """
        p, cancel, raised = v2l.Pipeline(ENGINES), v2l.Cancel(), []
        def alarm(*_):
            for attempt in (lambda: p.generate("a disc", **REQUEST), lambda: p.set_adapters([]), lambda: v2l.Session(None, "step")):
                try:
                    attempt()
                except v2l.Error as error:
                    raised.append(error.name)
            cancel.request()
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            p.generate("a disc", progress=lambda *_: None, cancel=cancel, **LONG)
        except v2l.Error as error:
            print(raised, error.name)
    """, "['V2L_ERROR_REENTRANT', 'V2L_ERROR_REENTRANT', 'V2L_ERROR_REENTRANT'] V2L_ERROR_CANCELLED\n")


def test_ctrl_c_waits_for_what_cannot_be_stopped_and_pressed_twice_does_not(engines: Path) -> None:
    prints(engines, """
        from v2l._apart import Apart
        def until(true):
            for _ in range(6000):
                if true():
                    return
                time.sleep(0.01)
        class Seen(Apart):
            waits = False
            def serve(self):
                self.waits = True
                return False
        for presses in (1, 2):
            call, left = Seen(), []
            def work():
                until(lambda: call.waits)
                os.kill(os.getpid(), signal.SIGINT)
                until(lambda: call.raised is not None)
                if presses == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                    until(lambda: call.left)
                else:
                    time.sleep(0.3)
                left.append(call.left)
            try:
                call.run(work)
            except KeyboardInterrupt:
                until(lambda: left)
                print(left)
    """, "[False]\n[True]\n")


def test_ctrl_c_many_times_leaves_and_python_ends_well(engines: Path) -> None:
    ran = program(engines, """
        p = v2l.Pipeline(ENGINES)
        def press():
            time.sleep(1.0)
            for _ in range(50):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.001)
        threading.Thread(target=press, daemon=True).start()
        try:
            p.generate("a disc", progress=lambda *_: time.sleep(0.001), **LONG)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    """)
    assert ran.returncode in (130, -signal.SIGINT, 1), ran.stderr
    assert "KeyboardInterrupt" in ran.stderr and "Fatal" not in ran.stderr


def test_ctrl_c_storms_lose_no_interrupt_and_no_video(engines: Path) -> None:
    prints(engines, """
        import random
        p, random = v2l.Pipeline(ENGINES), random.Random(7)
        interrupted = 0
        for round in range(30):
            timer = threading.Timer(random.uniform(0.05, 0.4), lambda: os.kill(os.getpid(), signal.SIGINT))
            try:
                timer.start()
                p.generate("a disc", progress=(lambda *_: None) if round % 2 else None, **LONG)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
        print(interrupted, len(p.generate("a disc", **REQUEST)["frames"]))
    """, "30 9\n")


def test_progress_runs_on_the_thread_that_asked(engines: Path) -> None:
    with v2l.Pipeline(engines) as pipeline:
        for in_main in (True, False):
            seen: List[int] = []

            def work() -> None:
                pipeline.generate(PROMPT, image=IMAGE, progress=lambda *_: seen.append(threading.get_ident()), **REQUEST)
                assert set(seen) == {threading.get_ident()}
                seen.append(0)

            if in_main:
                work()
            else:
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
            assert seen[-1] == 0 and len(seen) > 4


def test_calls_from_a_progress_function_are_refused_but_for_requests_to_stop(engines: Path) -> None:
    for in_main in (True, False):
        with v2l.Pipeline(engines) as pipeline:
            raised: List[str] = []
            cancel, engine = v2l.Cancel(), pipeline.engine("transformer")

            def on_progress(*_: object) -> None:
                attempts: List[Callable[[], Any]] = [
                    lambda: pipeline.generate(PROMPT, image=IMAGE, **REQUEST), lambda: v2l.Pipeline(engines), lambda: v2l.set_log(None),
                    lambda: v2l.Session(engine, "step"),
                ]
                for attempt in attempts:
                    try:
                        attempt()
                    except v2l.Error as error:
                        raised.append(error.name)
                cancel.request()

            def work() -> None:
                with pytest.raises(v2l.Error) as stopped:
                    pipeline.generate(PROMPT, image=IMAGE, progress=on_progress, cancel=cancel, **REQUEST)
                raised.append(stopped.value.name)

            if in_main:
                work()
            else:
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
            assert raised == ["V2L_ERROR_REENTRANT"] * 4 + ["V2L_ERROR_CANCELLED"], in_main
            assert pipeline.generate(PROMPT, image=IMAGE, **REQUEST) is not None


def test_exception_of_a_progress_function_keeps_its_cause_and_stops_the_call(engines: Path) -> None:
    with v2l.Pipeline(engines) as pipeline:
        def on_progress(*_: object) -> None:
            raise LookupError("outer") from ValueError("inner")

        began = time.monotonic()
        with pytest.raises(LookupError) as found:
            pipeline.generate(PROMPT, image=IMAGE, progress=on_progress, **{**REQUEST, "num_frames": 97, "num_inference_steps": 1000})
        assert isinstance(found.value.__cause__, ValueError)
        assert time.monotonic() - began < 20


def test_request_that_was_made_before_stops_at_once_and_until_it_is_taken_back(engines: Path) -> None:
    cancel = v2l.Cancel()
    cancel.request()
    with v2l.Pipeline(engines) as pipeline:
        for _ in range(2):
            with pytest.raises(v2l.Error) as stopped:
                pipeline.generate(PROMPT, image=IMAGE, cancel=cancel, **REQUEST)
            assert stopped.value.name == "V2L_ERROR_CANCELLED"
            with pytest.raises(v2l.Error):
                pipeline.set_adapters([], cancel=cancel)
        cancel.reset()
        assert pipeline.generate(PROMPT, image=IMAGE, cancel=cancel, **REQUEST) is not None


def test_results_of_a_call_are_freed(engines: Path) -> None:
    prints(engines, """
        import resource
        from v2l import _handles
        p = v2l.Pipeline(ENGINES)
        gc.disable()
        def stop(*_):
            raise LookupError
        for _ in range(5):
            p.generate("a disc", progress=lambda *_: None, **REQUEST)
            try:
                p.generate("a disc", progress=stop, **REQUEST)
            except LookupError:
                pass
            try:
                v2l.Adapter(p.engine("transformer"), "/nowhere")
            except v2l.Error:
                pass
        kinds = sorted(owner.kind for owner in _handles._OWNERS.listed())
        print(kinds)
    """, "['pipeline']\n")
