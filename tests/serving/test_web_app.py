"""The HTTP face, in this process: right answers, and a clear refusal of whatever is wrong."""

import base64
import concurrent.futures
import io
import json
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from served import SIDE, encoded, pattern, predictor_of, regression, served

pytest.importorskip("fastapi", reason="pip install 'distmeta[serve]'")
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def web():
    with served(predictor_of("protonet"), max_body=0.5, max_examples=40, max_classes=10, max_pixels=100_000) as found:
        yield found


@pytest.fixture(scope="module")
def maml():
    with served(predictor_of("maml")) as found:
        yield found


def task(*seeds, query=0):
    """A body: one picture for each of ``seeds``, whose label is its letter, and one of them as the query."""
    return {
        "support_x": [encoded(pattern(seed)) for seed in seeds],
        "support_y": [chr(97 + seed) for seed in seeds],
        "query_x": [encoded(pattern(seeds[query]))],
    }


# -- answers -----------------------------------------------------------------------------------------------------------


def test_support_and_queries_in_one_request(web):
    body = task(0, 1, 2, query=1) | {"explain": True}
    body["query_x"] += [encoded(pattern(0))]
    found = web.predict(**body)
    assert found.status == 200
    assert found.json["predictions"] == ["b", "a"]
    assert found.json["classes"] == ["a", "b", "c"]
    assert np.argmax(found.json["probabilities"], 1).tolist() == [1, 0]
    np.testing.assert_allclose(np.sum(found.json["probabilities"], 1), 1, rtol=1e-5)
    first = found.json["explanations"][0]["support"]
    assert (first[0]["index"], first[0]["label"]) == (1, "b")
    assert sum(one["weight"] for one in first) == pytest.approx(1)
    assert [one["weight"] for one in first] == sorted((one["weight"] for one in first), reverse=True)


def test_every_way_to_send_a_picture_is_the_same_picture(web):
    pixels = pattern(1)
    ways = [
        encoded(pixels),
        encoded(pixels, "WEBP"),
        f"data:image/png;base64,{encoded(pixels)}",
        pixels.tolist(),
        (pixels / 255).tolist(),
        pixels[None].tolist(),
        pixels[:, :, None].tolist(),
    ]
    answers = [web.predict(**(task(0, 1, 2) | {"query_x": [way]})) for way in ways]
    assert [answer.status for answer in answers] == [200] * len(ways)
    probabilities = np.array([answer.json["probabilities"][0] for answer in answers])
    np.testing.assert_allclose(probabilities, probabilities[:1].repeat(len(ways), 0), atol=1e-6)


def test_a_white_picture_sent_as_ones_is_white_not_black(web):
    body = {
        "support_x": [[[0] * SIDE] * SIDE, [[255] * SIDE] * SIDE],
        "support_y": ["black", "white"],
        "query_x": [[[1] * SIDE] * SIDE],  # JavaScript writes 1.0 so
    }
    assert web.predict(**body).json["predictions"] == ["white"]


def test_labels_are_strings_or_integers_and_come_back_as_they_were(web):
    body = task(0, 1, 2, query=2)
    assert web.predict(**(body | {"support_y": [7, 30, -1]})).json["predictions"] == [-1]
    assert web.predict(**(body | {"support_y": ["ja", "nein", "ж/../\n"]})).json["predictions"] == ["ж/../\n"]
    assert web.predict(**(body | {"support_y": ["1", 1, 2]})).json["predictions"] == [2]


def test_a_gradient_learner_explains_by_inner_step(maml):
    found = maml.predict(**(task(0, 1, 2, query=1) | {"explain": True}))
    assert found.json["predictions"] == ["b"]
    (steps,) = (one["logits_by_step"] for one in found.json["explanations"])
    assert np.shape(steps) == (3, 3)
    assert np.argmax(steps[-1]) == 1


def test_a_learned_task_is_asked_again_and_again(maml):
    body = task(0, 1, 2, query=2)
    queries = {"query_x": body.pop("query_x")}
    made = maml.ask("POST", "/tasks", body)
    assert made.status == 200
    assert made.json["classes"] == ["a", "b", "c"]
    assert made.json["kept"] == {"seconds": 3600, "tasks": 1000}
    path = f"/tasks/{made.json['id']}"
    once = maml.predict(**body, **queries).json
    for _ in range(2):
        again = maml.ask("POST", f"{path}/predict", queries).json
        assert again["predictions"] == once["predictions"] == ["c"]
        np.testing.assert_allclose(again["probabilities"], once["probabilities"], atol=1e-6)
    assert maml.ask("DELETE", path).status == 204
    for method, where in (("POST", f"{path}/predict"), ("DELETE", path)):
        gone = maml.ask(method, where, queries if method == "POST" else None)
        assert gone.status == 404
        assert "Post it to /tasks again" in gone.message


def test_the_oldest_task_makes_room_and_a_task_expires():
    body = task(0, 1, 2)
    queries = {"query_x": body.pop("query_x")}
    with served(predictor_of("maml"), max_tasks=2, keep_minutes=0.02) as web:
        ids = [web.ask("POST", "/tasks", body).json["id"] for _ in range(3)]
        found = [web.ask("POST", f"/tasks/{one}/predict", queries) for one in ids]
        assert [one.status for one in found] == [404, 200, 200]
        time.sleep(1.3)
        gone = web.ask("POST", f"/tasks/{ids[2]}/predict", queries)
        assert gone.status == 404
        assert "was not used for 0.02 minutes" in gone.message


def test_vectors_and_regression():
    with served(predictor_of("protonet", shape=(3,))) as web:
        found = web.predict(support_x=[[0, 0, 0], [9.5, 9, 9]], support_y=["low", "high"], query_x=[[8, 8, 8.5]])
        assert found.json["predictions"] == ["high"]
        refused = web.predict(**task(0, 1))
        assert refused.status == 422
        assert refused.message.startswith("support_x[0] is a string; this model takes numbers")
        huge = web.predict(support_x=[[0, 0, 0], [1e300, 9, 9]], support_y=["low", "high"], query_x=[[8, 8, 8.5]])
        assert huge.status == 422
        far = web.predict(support_x=[[0, 0, 0], [1e30, 9, 9]], support_y=["low", "high"], query_x=[[8, 8, 8.5]])
        assert far.status == 422
        assert "no finite number" in far.message
    with served(regression()) as web:
        found = web.predict(support_x=[[0.0], [1.0]], support_y=[[0.5], 1], query_x=[[2.0], [3.0]])
        assert np.shape(found.json["values"]) == (2, 1)
        made = web.ask("POST", "/tasks", {"support_x": [[0.0], [1.0]], "support_y": [[0.5], 1]})
        assert made.status in (200, 201)
        kept = web.ask("POST", f"/tasks/{made.json['id']}/predict", {"query_x": [[2.0], [3.0]]})
        np.testing.assert_allclose(kept.json["values"], found.json["values"], rtol=1e-5, atol=1e-6)
        assert web.predict(support_x=[[0.0]], support_y=["a"], query_x=[[2.0]]).status == 422


def test_a_sequence_learner_runs_sequences():
    from distmeta import MANN, mann
    from distmeta.data.preprocessing import Preprocessing
    from distmeta.seeding import rng
    from distmeta.serving.predictor import Predictor
    from distmeta.types import TaskSpec

    spec = TaskSpec((4,), 2, "sequence", 0, 6)
    learner = MANN(mann()).bind(spec, 0)
    predictor = Predictor(learner, learner.init_meta_params(rng(0, "init")), spec, Preprocessing((4,)), {"name": "m"})
    with served(predictor) as web:
        found = web.ask("POST", "/run", {"sequence": [[0, 1, 0, 1]] * 5})
        assert np.shape(found.json["outputs"]) == (5, 2)
        for wrong in ([[0, 1]], [["a", 1, 2, 3]], [[1, 2, 3, 4], [1]], [[1e999, 2, 3, 4]]):
            assert web.ask("POST", "/run", {"sequence": wrong}).status in (400, 422)
        found = web.predict(support_x=[[1, 2, 3, 4]] * 2, support_y=["a", "b"], query_x=[[1, 2, 3, 4]])
        assert found.status == 422
        assert "Use run(sequence)" in found.message or "/run" in found.message


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["protonet", "maml"])
def test_requests_that_arrive_together_are_not_mixed_up(kind):
    """Each client has labels of its own, so that an answer of another's task is seen."""
    rng = np.random.default_rng(0)

    def body(n):
        seeds = rng.permutation(50)[:3].tolist()
        place = n % 3
        return {
            "support_x": [encoded(pattern(seed)) for seed in seeds],
            "support_y": [f"task {n} class {i}" for i in range(3)],
            "query_x": [encoded(pattern(seeds[place]))],
        }, f"task {n} class {place}"

    wrong = [
        ({"support_x": ["!"], "support_y": ["a"], "query_x": ["!"]}, 422),
        ({"suport_x": []}, 422),
        (b"{", 400),
    ]
    with served(predictor_of(kind), max_batch=16) as together, served(predictor_of(kind), batch=False) as single:
        bodies = [body(n) for n in range(90)]
        sent = [(one, answer, 200) for one, answer in bodies] + [(*w[:1], None, w[1]) for w in wrong * 5]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda one: together.ask("POST", "/predict", one[0]), sent))
        for (_, expected, status), answer in zip(sent, answers, strict=True):
            assert answer.status == status
            if expected and kind == "protonet":
                assert answer.json["predictions"] == [expected]
        for (one, _), answer in zip(bodies, answers, strict=False):
            alone = single.predict(**one).json
            assert answer.json["predictions"] == alone["predictions"]
            assert answer.json["classes"] == alone["classes"] == one["support_y"]
            np.testing.assert_allclose(answer.json["probabilities"], alone["probabilities"], atol=2e-6)


def test_large_bodies_are_decoded_beside_the_computation_small_ones_by_it(monkeypatch):
    predictor, threads, answers = predictor_of("protonet"), [], []
    plain = predictor.inputs
    monkeypatch.setattr(
        predictor, "inputs", lambda *a, **k: threads.append(threading.current_thread().name) or plain(*a, **k)
    )
    with served(predictor) as web:
        for most in (2**16, 10):
            monkeypatch.setattr("distmeta.serving.web_app._LARGE", most)
            answers.append(web.predict(**task(0, 1)).json)
    assert [name.rpartition("_")[0] for name in threads] == ["distmeta-compute"] * 3 + ["distmeta-decode"] * 3
    assert answers[0] == answers[1]


def test_the_event_loop_answers_while_a_batch_computes(monkeypatch):
    predictor = predictor_of("protonet")
    entered, release = threading.Event(), threading.Event()
    plain = predictor.predict_all

    def slow(questions):
        entered.set()
        assert release.wait(20)
        return plain(questions)

    monkeypatch.setattr(predictor, "predict_all", slow)
    with served(predictor) as web, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(web.predict, **task(0, 1))
        assert entered.wait(20)
        assert web.ask("GET", "/healthz").json == {"status": "ok"}
        release.set()
        assert waiting.result().status == 200


def test_an_error_of_ours_is_a_500_with_an_id_and_no_traceback(monkeypatch, caplog):
    predictor = predictor_of("protonet")
    monkeypatch.setattr(predictor, "predict_all", lambda questions: 1 / 0)
    with served(predictor) as web:
        found = web.predict(**task(0, 1))
        assert found.status == 500
        number = found.json["error"]["id"]
        assert number in found.message
        assert "division" not in found.body.decode()
        assert any(number in record.getMessage() and record.exc_info for record in caplog.records)
        monkeypatch.undo()
        assert web.predict(**task(0, 1)).status == 200


# -- bad input ---------------------------------------------------------------------------------------------------------


def claims(width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


def truncated():
    data = base64.b64decode(encoded(np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)))
    return base64.b64encode(data[: len(data) // 2]).decode()


def with_query(*query):
    return task(0, 1) | {"query_x": list(query)}


PIXELS = pattern(0).tolist()
BAD = {
    "no JSON": (b"{", 400, "The body is no JSON"),
    "empty": (b"", 400, "The body is no JSON"),
    "NaN": (b'{"query_x": [[NaN]]}', 400, "NaN and Infinity"),
    "Infinity": (b'{"query_x": [[-Infinity]]}', 400, "NaN and Infinity"),
    "latin-1": ('{"support_y": ["é"]}'.encode("latin-1"), 400, "no JSON"),
    "a lone surrogate": (b'{"support_y": ["\\ud800"]}', 400, "no JSON"),
    "nested 100,000 deep": (b"[" * 100_000, 400, "recursion limit"),
    "a number of 5,000 digits": (b'{"support_y": [' + b"9" * 5000 + b"]}", 400, "out of range"),
    "a list": ([], 422, "The body is a list; expected an object with"),
    "null": (b"null", 422, "The body is null"),
    "nothing": ({}, 422, "lacks 'support_x'"),
    "an unknown key": (task(0, 1) | {"explian": True}, 422, "unknown key 'explian'. Did you mean 'explain'?"),
    "a misspelt key": ({"suport_x": []}, 422, "Did you mean 'support_x'?"),
    "no queries key": ({k: v for k, v in task(0, 1).items() if k != "query_x"}, 422, "lacks 'query_x'"),
    "no queries": (with_query(), 422, "'query_x' is empty"),
    "a string for a list": (
        task(0, 1) | {"query_x": encoded(pattern(0))},
        422,
        "'query_x' is a string; expected a list",
    ),
    "explain is a word": (task(0, 1) | {"explain": "yes"}, 422, "'explain' is a string; expected true or false"),
    "fewer labels": (task(0, 1) | {"support_y": ["a"]}, 422, "2 inputs in support_x and 1 labels"),
    "one class": (task(0, 1) | {"support_y": ["a", "a"]}, 422, "one class, a; expected two at least"),
    "a label is null": (task(0, 1) | {"support_y": ["a", None]}, 422, "support_y[1] is null"),
    "a label is true": (task(0, 1) | {"support_y": ["a", True]}, 422, "support_y[1] is a boolean"),
    "a label is 1.5": (task(0, 1) | {"support_y": [1, 1.5]}, 422, "support_y[1] is a number; expected a string or"),
    "a label is a list": (task(0, 1) | {"support_y": ["a", ["b"]]}, 422, "support_y[1] is a list"),
    "a long label": (task(0, 1) | {"support_y": ["a", "b" * 201]}, 422, "201 characters"),
    "a label of 65 bits": (task(0, 1) | {"support_y": [1, 2**64]}, 422, "more than 64 bits"),
    "too many classes": (
        {"support_x": [PIXELS] * 11, "support_y": list(range(11)), "query_x": [PIXELS]},
        413,
        "11 classes; expected at most 10",
    ),
    "too many examples": (
        {"support_x": ["x"] * 41, "support_y": list(range(41)), "query_x": ["x"]},
        413,
        "support_x has 41 entries; expected at most 40",
    ),
    "too many queries": (with_query(*["x"] * 41), 413, "query_x has 41 entries"),
    "no base64": (with_query("not base64!"), 422, "query_x[0] is a string that is no base64"),
    "base64 of text": (with_query(base64.b64encode(b"hello" * 9).decode()), 422, "holds 45 bytes that are no picture"),
    "a data URL without base64": (with_query("data:image/svg+xml,<svg/>"), 422, "a data: URL without base64"),
    "EPS, whose decoder starts programs": (
        with_query(base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()),
        422,
        "no picture",
    ),
    "a truncated picture": (with_query(truncated()), 422, "query_x[0] cannot be read as an image"),
    "a decompression bomb": (with_query(claims(60_000, 60_000)), 413, "pixels or more; expected at most 100,000"),
    "a bomb beyond Pillow's own limit": (with_query(claims(2**31 - 1, 2**31 - 1)), 413, "pixels or more"),
    "many pictures within the limit": (with_query(*[encoded(pattern(0, 150))] * 5), 413, "112,500 pixels or more"),
    "a path": (with_query("/etc/passwd"), 422, "no base64"),
    "words": (with_query([["a"]]), 422, "query_x[0] is no array of numbers"),
    "ragged": (with_query([[1, 2], [3]]), 422, "is no array of numbers"),
    "nothing in a list": (with_query([]), 422, "is no array of numbers"),
    "null in a list": (with_query([[1, None]]), 422, "is no array of numbers"),
    "booleans": (with_query([[True, False]]), 422, "is no array of numbers"),
    "an infinite number": (b'{"support_x": [[1e999]], "support_y": [1], "query_x": [[1]]}', 422, ""),
    "above 255": (with_query([[0, 256]]), 422, "from 0 to 256; expected whole numbers from 0 to 255"),
    "negative": (with_query([[-1.5, 1]]), 422, "Undo the normalisation"),
    "fractions above 1": (with_query([[0.5, 1.5]]), 422, "expected whole numbers"),
    "of another shape": (with_query([1, 2, 3]), 422, "query_x[0] has shape [3]; expected pictures"),
    "an object": (with_query({"a": 1}), 422, "query_x[0] is an object"),
    "a number": (with_query(3), 422, "query_x[0] is an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_fix(web, name):
    body, status, message = BAD[name]
    found = web.ask("POST", "/predict", body)
    assert found.status == status, found.body
    assert message in found.message


def test_a_million_classes_are_refused_before_they_are_read(web):
    body = json.dumps({"support_x": [0] * 50_000, "support_y": list(range(50_000)), "query_x": [0]}).encode()
    found = web.ask("POST", "/predict", body)
    assert found.status == 413
    assert "support_x has 50,000 entries" in found.message
    with served(predictor_of("protonet"), max_examples=10**7) as wide:
        many = 10**6
        body = b'{"support_x": [' + b"0," * (many - 1) + b'0], "support_y": ['
        body += b",".join(b"%d" % n for n in range(many)) + b'], "query_x": [0]}'
        found = wide.ask("POST", "/predict", body)
        assert found.status == 413
        assert "1,000,000 classes; expected at most 100" in found.message
        assert len(found.message) < 400


def test_more_classes_than_outputs_are_refused(maml):
    found = maml.predict(**task(0, 1, 2, 3))
    assert found.status == 422
    assert "this model tells at most 3 apart" in found.message


def test_a_long_thin_drawing_is_not_put_on_a_huge_square():
    thin = np.full((1, 60_000), 255, np.uint8)
    with served(predictor_of("protonet", ink=True)) as web:
        found = web.predict(**(task(0, 1) | {"support_x": [encoded(thin), encoded(thin)]}))
        assert found.status == 413
        assert "pixels or more" in found.message


def test_damaged_pictures_are_never_an_error_of_ours(web):
    random = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP"):
        whole = base64.b64decode(encoded(pattern(0, 40), form))
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(random.integers(1, 12)):
                data[random.integers(len(data))] = random.integers(256)
            data = data[: random.integers(1, len(data) + 1)]
            found = web.predict(**with_query(base64.b64encode(bytes(data)).decode()))
            assert found.status in (200, 413, 422), found.body


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_refused(web, kind):
    """A page of another site can send these without asking: JSON it cannot."""
    found = web.ask("POST", "/predict", json.dumps(task(0, 1)).encode(), {"Content-Type": kind or ""})
    assert found.status == 415
    assert "expected application/json" in found.message
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/tasks", 405),
        ("GET", "/tasks/abc", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("DELETE", "/tasks/..%2f..%2fetc%2fpasswd", 404),
        ("DELETE", "/tasks/%00", 404),
        ("DELETE", "/tasks/" + "a" * 5000, 404),
        ("DELETE", "/tasks/unknown", 404),
        ("POST", "/tasks/unknown/predict", 404),
        ("POST", "/tasks/%2e%2e/predict", 404),
        ("GET", "/redoc", 404),
    ],
)
def test_other_paths_and_methods_are_refused_as_json(web, method, path, status):
    found = web.ask(method, path, {"query_x": [PIXELS]} if method == "POST" else None)
    assert found.status == status
    assert len(found.message) < 500


def raw(web, head, *parts):
    """The first line of the answer to a request written by hand."""
    with socket.create_connection(("127.0.0.1", web.port), 30) as connection:
        connection.sendall(head)
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # the service has closed it: it has read enough
        return connection.recv(4096).split(b"\r\n")[0]


def test_a_large_body_is_refused_before_it_is_read(web):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 413 " in raw(web, head + b"Content-Length: 1000000000\r\n\r\n", b"{")  # nothing of it was sent
    assert b" 413 " in raw(web, head + b"Content-Length: %d\r\n\r\n" % (2**19 + 1), b"{")


def test_a_large_body_without_a_length_is_refused_while_it_is_read(web):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert b" 413 " in raw(web, head, *[part] * 100)


def test_a_length_that_lies_is_no_way_around():
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with served(predictor_of("protonet"), body_seconds=0.3) as web:
        assert b" 408 " in raw(web, head + b"Content-Length: 100\r\n\r\n", b"{}")  # the rest never comes
        assert b" 400 " in raw(web, head + b"Content-Length: -1\r\n\r\n", b"{}")
        assert b" 400 " in raw(web, head + b"Content-Length: 1e9\r\n\r\n", b"{}")
        assert b" 400 " in raw(web, head + b"Content-Length: 1\r\n\r\n", b"{}" * 9)  # half a body
        assert web.predict(**task(0, 1)).status == 200


# -- token, page, description ------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_everywhere_but_on_the_page():
    with served(predictor_of("protonet"), token="s3cret-ж") as web:
        given = {"Authorization": "Bearer s3cret-ж".encode().decode("latin-1")}
        assert web.ask("POST", "/predict", task(0, 1), given).status == 200
        mangled = "Bearer s3cret-ж".encode("latin-1", "replace").decode()
        for wrong in (None, "Bearer s3cret", "Bearer", "Basic s3cret-", "s3cret-", mangled):
            found = web.ask("POST", "/predict", task(0, 1), {"Authorization": wrong} if wrong else {})
            assert found.status == 401
            assert "Authorization: Bearer TOKEN" in found.message
            assert found.headers["www-authenticate"] == "Bearer"
        for path in ("/model", "/openapi.json", "/docs", "/nothing", "/tasks/x"):
            assert web.ask("GET", path).status == 401
        assert web.ask("GET", "/").status == web.ask("GET", "/healthz").status == 200
        assert b"s3cret" not in web.ask("GET", "/").body
        assert b"s3cret" not in web.ask("GET", "/model", headers=given).body


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(web, path):
    found = web.ask("GET", path)
    assert found.status == 200
    policy = found.headers["content-security-policy"]
    script = "'sha256-" if path == "/" else "'none'"
    assert policy.startswith(f"default-src 'none'; script-src {script}")
    assert "unsafe" not in policy
    text = found.body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in "".join(part for part in text.split('"') if part.startswith("//"))


def test_model_tells_what_is_served(web, maml):
    found = web.ask("GET", "/model").json
    assert (found["name"], found["learner"], found["most_classes"]) == ("small_protonet", "ProtoNet", None)
    inputs = {"shape": [1, SIDE, SIDE], "any_columns": False, "pictures": True, "ink": False, "dtype": "uint8"}
    assert found["inputs"] == inputs
    assert found["limits"]["max_examples"] == 40
    assert found["test"]["accuracy"] == 0.9
    assert maml.ask("GET", "/model").json["most_classes"] == 3


def test_openapi_describes_bodies_limits_and_errors(web):
    api = web.ask("GET", "/openapi.json").json
    assert set(api["paths"]) == {
        "/predict",
        "/tasks",
        "/tasks/{task_id}",
        "/tasks/{task_id}/predict",
        "/run",
        "/model",
        "/healthz",
    }
    predict = api["paths"]["/predict"]["post"]
    schema = predict["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    check.validate(task(0, 1))
    assert schema["properties"]["support_x"]["maxItems"] == 40
    for name in ("an unknown key", "no queries", "too many queries", "a number", "a label is null"):
        assert list(check.iter_errors(BAD[name][0])), name
    assert {"200", "400", "401", "408", "413", "415", "422", "503"} <= set(predict["responses"])
    assert "404" in api["paths"]["/tasks/{task_id}/predict"]["post"]["responses"]
    assert "0.5 MiB" in api["info"]["description"]
    error = api["components"]["schemas"]["ErrorBody"]
    assert error["properties"]["error"]


def test_pictures_of_photographs_are_scaled(tmp_path):
    with served(predictor_of("protonet", shape=(3, SIDE, SIDE))) as web:
        content = io.BytesIO()
        Image.new("RGB", (640, 480), "red").save(content, "JPEG")
        red = base64.b64encode(content.getvalue()).decode()
        blue = encoded(np.full((300, 200, 3), (0, 0, 255), np.uint8))
        found = web.predict(support_x=[red, blue], support_y=["red", "blue"], query_x=[blue, red])
        assert found.json["predictions"] == ["blue", "red"]
