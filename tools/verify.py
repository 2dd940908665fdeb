#!/usr/bin/env python3
"""A second verifier that shares no code with the first: chain proofs, votes, images, inputs.

Uses only the standard library. Reads a client's cached reading or a mirror's files, and accepts only what follows from
a block's hash.

  verify.py reading FILE --directory ADDRESS --images ADDRESS --collateral ADDRESS --chain NUMBER [--block HASH] [--time-divisor NUMBER]
  verify.py inputs LOCK --inputs DIR
  verify.py image IMAGE --lock LOCK --firmware FILE [--manifest FILE]

Lists invalid evidence of single relays; does not check chips' signatures. Exit codes: 0 if everything else and some
evidence is valid, 5 if not, 1 if a file cannot be read, 2 for wrong usage.
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import tomllib

RELAY_IMAGE = 1
# The oldest firmware generation that a relay image may start with, whatever validators approved.
MIN_FIRMWARE_GENERATION = 1
NEWEST = 16
# Slots in the contracts' storage: contracts/artifacts/*.json, storageLayout.
ROUNDS, IMAGES, APPROVED, CURRENT = 8, 16, 17, 12
# How long an image stays usable after a newer one becomes usable, in seconds: ImageRegistry.GRACE.
GRACE = 14 * 86_400
HISTORY = bytes.fromhex("0000f90827f1c53a10cb7a02335b175320002935")
RECORDS_IN_PAGE = 64
EVIDENCE_IN_PAGE = 64
SERVED = 8191


class Refused(Exception):
    """A check failed."""


def need(holds, what):
    if not holds:
        raise Refused(what)


# --- Keccak-256 (FIPS 202 permutation with the padding of the original submission) ---

ROTATIONS = [0, 1, 62, 28, 27, 36, 44, 6, 55, 20, 3, 10, 43, 25, 39, 41, 45, 15, 21, 8, 18, 2, 61, 56, 14]
MASK = (1 << 64) - 1


def round_constants():
    state, out = 1, []
    for _ in range(24):
        constant = 0
        for bit in range(7):
            if state & 1:
                constant |= 1 << ((1 << bit) - 1)
            state <<= 1
            if state & 0x100:
                state ^= 0x171
        out.append(constant)
    return out


CONSTANTS = round_constants()


def rotate(word, by):
    return ((word << by) | (word >> (64 - by))) & MASK if by else word


def permute(a):
    for constant in CONSTANTS:
        c = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        d = [c[(x + 4) % 5] ^ rotate(c[(x + 1) % 5], 1) for x in range(5)]
        a = [a[i] ^ d[i % 5] for i in range(25)]
        b = [0] * 25
        for x in range(5):
            for y in range(5):
                b[y + 5 * ((2 * x + 3 * y) % 5)] = rotate(a[x + 5 * y], ROTATIONS[x + 5 * y])
        a = [b[i] ^ (~b[(i + 1) % 5 + 5 * (i // 5)] & b[(i + 2) % 5 + 5 * (i // 5)] & MASK) for i in range(25)]
        a[0] ^= constant
    return a


def keccak(data):
    rate, state = 136, [0] * 25
    padded = bytearray(data) + b"\x01" + bytes(-(len(data) + 1) % rate)
    padded[-1] |= 0x80
    for at in range(0, len(padded), rate):
        for i in range(rate // 8):
            state[i] ^= int.from_bytes(padded[at + 8 * i : at + 8 * i + 8], "little")
        state = permute(state)
    return b"".join(word.to_bytes(8, "little") for word in state[:4])


# --- RLP and tries (Ethereum's yellow paper, appendices B and D) ---


def rlp(data):
    item, rest = rlp_item(data)
    need(not rest, "trailing bytes after an RLP item")
    return item


def rlp_item(data):
    need(data, "an RLP item is missing")
    head = data[0]
    if head < 0x80:
        return data[:1], data[1:]
    is_list, short = head >= 0xC0, head - (0xC0 if head >= 0xC0 else 0x80)
    size, begin = (short, 1) if short < 56 else (int.from_bytes(data[1 : short - 54], "big"), short - 54)
    need(begin + size <= len(data), "an RLP item is shorter than its length")
    content, rest = data[begin : begin + size], data[begin + size :]
    if not is_list:
        return content, rest
    items = []
    while content:
        item, content = rlp_item(content)
        items.append(item)
    return items, rest


def rlp_bytes(content):
    return content if len(content) == 1 and content[0] < 0x80 else rlp_headed(0x80, content)


def rlp_list(items):
    """Encodes a list of encoded items."""
    return rlp_headed(0xC0, b"".join(items))


def rlp_headed(kind, content):
    if len(content) < 56:
        return bytes([kind + len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([kind + 55 + len(size)]) + size + content


def rlp_number(number):
    return rlp_bytes(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def nibbles_of(data):
    return [nibble for byte in data for nibble in (byte >> 4, byte & 15)]


def trie_root(leaves):
    """Returns the root of a trie with these values under the hashes of their keys."""
    leaves = sorted((nibbles_of(key), value) for key, value in leaves)
    return keccak(trie_node(leaves) if leaves else b"\x80")


def trie_node(leaves):
    paths = [path for path, _ in leaves]
    if len(leaves) == 1:
        return rlp_list([rlp_bytes(packed(paths[0], 2)), rlp_bytes(leaves[0][1])])
    # The paths are sorted, so a prefix shared by the first and the last is shared by all.
    shared = next(at for at, pair in enumerate(zip(paths[0], paths[-1])) if pair[0] != pair[1])
    if shared:
        below = trie_node([(path[shared:], value) for path, value in leaves])
        return rlp_list([rlp_bytes(packed(paths[0][:shared], 0)), named(below)])
    children = [[(path[1:], value) for path, value in leaves if path[0] == nibble] for nibble in range(16)]
    return rlp_list([named(trie_node(child)) if child else b"\x80" for child in children] + [b"\x80"])


def packed(path, kind):
    """Encodes a path as nodes do; kind 2 marks leaves, 0 extensions."""
    odd = len(path) & 1
    path = ([kind + 1] if odd else [kind, 0]) + path
    return bytes(16 * high + low for high, low in zip(path[::2], path[1::2]))


def named(node):
    """Returns the reference to a node in its parent."""
    return node if len(node) < 32 else rlp_bytes(keccak(node))


def trie_value(root, key, nodes):
    """Returns the value under a key; None if the proof shows that there is no value."""
    path = nibbles_of(keccak(key))
    if not nodes:
        need(root == keccak(b"\x80"), "the proof is empty, but the trie is not")
        return None
    wanted, node, used = root, None, 0
    while True:
        if isinstance(wanted, bytes):
            need(used < len(nodes) and keccak(nodes[used]) == wanted, "a node of a proof has another hash")
            node, used = rlp(nodes[used]), used + 1
        else:
            node = wanted
        if len(node) == 17:
            if not path:
                value, path = node[16], None
            else:
                value, path = node[path[0]], path[1:]
            if value == b"":
                need(used == len(nodes), "a proof continues after its end")
                return None
            need(path is not None, "a key ends in a branch")
            wanted = value
            continue
        head, leaf = node[0], node[0][0] >> 4
        nibbles = ([head[0] & 15] if leaf & 1 else []) + nibbles_of(head[1:])
        same = path[: len(nibbles)] == nibbles
        if leaf & 2:
            need(used == len(nodes), "a proof continues after its end")
            return node[1] if path == nibbles else None
        if not same:
            need(used == len(nodes), "a proof continues after its end")
            return None
        path, wanted = path[len(nibbles) :], node[1]


# --- Readings: docs/ledger.md ---


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    @property
    def rest(self):
        return self.data[self.at :]

    def take(self, count):
        need(count <= len(self.data) - self.at, "the file is truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def proof(self):
        return [self.take(self.number(2)) for _ in range(self.number(1))]

    def account(self):
        return self.number(8), self.number(32), self.take(32), self.take(32)


def account_rlp(account):
    nonce, balance, root, code = account
    return rlp_list([rlp_number(nonce), rlp_number(balance), rlp_bytes(root), rlp_bytes(code)])


def proven_slots(cursor, state_root):
    """Returns the proven slots of one account."""
    address = cursor.take(20)
    account = cursor.account() if cursor.number(1) else None
    found = trie_value(state_root, address, cursor.proof())
    need(found == (account_rlp(account) if account else None), f"the proof of account {address.hex()} shows another account")
    root = account[2] if account else keccak(b"\x80")
    slots = {}
    for _ in range(cursor.number(2)):
        key, value, proof = cursor.take(32), cursor.number(32), cursor.proof()
        shown = trie_value(root, key, proof)
        need(shown == (rlp_number(value) if value else None), "the proof of a slot shows another value")
        slots[key] = value
    return address, slots


def word(number):
    return number.to_bytes(32, "big")


def entry(key, mapping):
    return int.from_bytes(keccak(word(key) + word(mapping)), "big")


def slot(slots, place, what):
    key = word(place % (1 << 256))
    need(key in slots, f"no proof of {what}")
    return slots[key]


def bits(number, begin, count):
    return number >> begin & ((1 << count) - 1)


def approved_images(slots):
    count_at = entry(RELAY_IMAGE, APPROVED)
    count = slot(slots, count_at, "the number of images")
    places, images = int.from_bytes(keccak(word(count_at)), "big"), []
    for number in range(max(0, count - NEWEST), count):
        packed = slot(slots, places + number // 4, "the list of images")
        one = bits(packed, 64 * (number % 4), 64)
        image, vote = entry(one, IMAGES), entry(one, ROUNDS)
        times = slot(slots, image + 1, "an image's times")
        images.append(
            {
                "round": one,
                "version": bits(slot(slots, image, "an image's version"), 160, 64),
                "usable_from": bits(times, 0, 48),
                "suspended_until": bits(times, 48, 48),
                "revoked": bits(times, 96, 48) != 0,
                "value": word(slot(slots, vote + 4, "an image's value")),
            }
        )
    return images


# States of versions that evidence cannot tell apart, by precedence.
BY_WEIGHT = ("revoked", "suspended", "active", "deprecated", "pending", "retired")


def state_of(image, images, time, haste):
    """Returns an image's state at a block's time, as ImageRegistry.stateOf does. `images` ascend by version."""
    if image["revoked"]:
        return "revoked"
    if time < image["suspended_until"]:
        return "suspended"
    if time < image["usable_from"]:
        return "pending"
    newer = [other["usable_from"] for other in images[images.index(image) + 1 :] if not other["revoked"]]
    superseded = min(newer, default=time + 1)
    if time < superseded:
        return "active"
    return "deprecated" if time < superseded + GRACE // haste else "retired"


# --- Statements of rebuilders: EIP-712 and secp256k1 (SEC 1, 4.1.6) ---

PRIME = (1 << 256) - (1 << 32) - 977
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
GENERATOR = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)


def add(one, other):
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % PRIME == 0:
        return None
    slope = 3 * x * x * pow(2 * y, -1, PRIME) if one == other else (v - y) * pow(u - x, -1, PRIME)
    sum_x = (slope * slope - x - u) % PRIME
    return sum_x, (slope * (x - sum_x) - y) % PRIME


def times(number, point):
    out = None
    while number:
        if number & 1:
            out = add(out, point)
        point, number = add(point, point), number >> 1
    return out


def signer(digest, signature):
    """Returns the address of the signing key; None if the signature is invalid."""
    r, s, parity = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64] - 27
    y = pow(r**3 + 7, (PRIME + 1) // 4, PRIME)
    if not (0 < r < ORDER and 0 < s < ORDER and parity in (0, 1)) or y * y % PRIME != (r**3 + 7) % PRIME:
        return None
    point = (r, y if y % 2 == parity else PRIME - y)
    back = pow(r, -1, ORDER)
    key = add(times(s * back % ORDER, point), times(-int.from_bytes(digest, "big") * back % ORDER, GENERATOR))
    return None if key is None else keccak(word(key[0]) + word(key[1]))[12:].hex()


def statement_hash(chain, contract, round_number, value):
    domain = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    domain += keccak(b"OpenRelay images") + keccak(b"1") + word(chain) + bytes(12) + contract
    said = keccak(b"Statement(uint64 round,uint8 answer,bytes32 value)") + word(round_number) + word(1) + value
    return keccak(b"\x19\x01" + keccak(domain) + keccak(said))


# --- Floors of firmware ---


def floors_of(bundle, slots):
    """Returns the minimum firmware versions; refuses collateral with older floors than the chain requires."""
    collateral, floors = json.loads(bundle), slot(slots, CURRENT + 1, "the floors")
    need(collateral["amd_floor"] >= bits(floors, 32, 64), "the collateral has older floors than the chain requires")
    return max(collateral["intel_floor"], bits(floors, 0, 32)), collateral


def product_of(family, model):
    """Source: AMD's processor programming references."""
    if family == 0x19 and model < 0x10:
        return "Milan"
    if family == 0x19 and (model < 0x20 or 0xA0 <= model < 0xB0):
        return "Genoa"
    return "Turin" if family == 0x1A and model < 0x20 else None


def check_amd_firmware(report, collateral):
    version, = struct.unpack_from("<I", report)
    need(version >= 3, "a report of version 2 does not state its product")
    product = product_of(report[0x188], report[0x189])
    floors = [one["floor"] for one in collateral["amd"] if one["product"] == product]
    need(floors, f"no floor for {product}")
    names = [("fmc", 0), ("boot_loader", 1), ("tee", 2), ("snp", 3), ("microcode", 7)]
    if product != "Turin":
        names = [("boot_loader", 0), ("tee", 1), ("snp", 6), ("microcode", 7)]
    # Current, reported, committed, launch.
    for at in (0x38, 0x180, 0x1E0, 0x1F0):
        for name, place in names:
            least = floors[0][name] or 0
            need(report[at + place] >= least, f"its {name} is {report[at + place]}; at least {least} is required")


def check_intel_firmware(certificate, intel_floor, collateral):
    infos = [json.loads(one["tcb_info"]) for one in collateral["intel"]]
    # The processor model follows the OID of its extension.
    marker = bytes.fromhex("060a2a864886f84d010d01040406")
    need(marker in certificate, "its certificate lacks a processor model")
    begin = certificate.index(marker) + len(marker)
    model = certificate[begin : begin + 6].hex()
    numbers = [one["tcbEvaluationDataNumber"] for one in infos if one["id"] == "TDX" and one["fmspc"].lower() == model]
    need(numbers, f"no collateral for processor model {model}")
    need(max(numbers) >= intel_floor, f"Intel's evaluation number is {max(numbers)}; at least {intel_floor} is required")


def read_attestation(data):
    """Parses a file of evidence. Its head lists the hash of every page, and every page carries the hash of the head."""
    cursor = Cursor(data)
    head = b"openrelay-attestation/3\n"
    need(cursor.take(len(head)) == head, "not a file of evidence")
    common = Cursor(cursor.take(cursor.number(4)))
    bundle = common.take(common.number(4))
    manifests = [common.take(common.number(4)) for _ in range(common.number(2))]
    statements = [(common.number(8), common.take(65)) for _ in range(common.number(2))]
    headers = [common.take(common.number(2)) for _ in range(common.number(2))]
    need(not common.rest, "trailing bytes after the common part of the file of evidence")
    relays = [cursor.number(8) for _ in range(cursor.number(4))]
    need(all(one < other for one, other in zip(relays, relays[1:])), "the relays of the file of evidence are not in order")
    firsts = range(0, len(relays), EVIDENCE_IN_PAGE)
    names = [cursor.take(32) for _ in firsts]
    own = hashlib.sha256(data[: cursor.at]).digest()
    staples = []
    for number, (first, name) in enumerate(zip(firsts, names)):
        page = Cursor(cursor.take(cursor.number(4)))
        need(page.take(32) == own, "a page of evidence belongs to another file")
        need(page.number(4) == number, "a page of evidence is out of order")
        need(hashlib.sha256(page.rest).digest() == name, "a page of evidence has another hash than the file lists")
        for relay in relays[first : first + EVIDENCE_IN_PAGE]:
            for _ in range(page.number(1)):
                staple = Cursor(page.take(page.number(2)))
                evidence = staple.take(staple.number(2))
                staples.append((evidence, staple.take(149)))
                need(not staple.rest, "trailing bytes after a staple")
                need(int.from_bytes(staples[-1][1][32:40], "big") == relay, "evidence of another relay than the page lists")
        need(not page.rest, "trailing bytes after the evidence of a page")
    need(not cursor.rest, "trailing bytes after the file of evidence")
    return bundle, manifests, statements, headers, staples


def records_of(data, root):
    """Returns the descriptors of all relays by relay ID; None for a descriptor that no source gave.

    The index yields the directory's root, so no relay is missing and none was added.
    """
    cursor = Cursor(data)
    head = b"openrelay-records/2\n"
    need(cursor.take(len(head)) == head, "the file has no records")
    need(cursor.take(32) == root, "the records belong to another block")
    index = [(cursor.number(8), cursor.take(32)) for _ in range(cursor.number(4))]
    need(all(one < other for (one, _), (other, _) in zip(index, index[1:])), "the index of the records is not in order")
    leaves = [(keccak(word(relay)), rlp_number(int.from_bytes(record, "big"))) for relay, record in index]
    need(trie_root(leaves) == root, "the records differ from the chain")
    descriptors = {}
    for first in range(0, len(index), RECORDS_IN_PAGE):
        page = Cursor(cursor.take(cursor.number(4)))
        need(page.take(32) == root, "a page of records belongs to another block")
        need(page.number(4) == first // RECORDS_IN_PAGE, "a page of records is out of order")
        for relay, record in index[first : first + RECORDS_IN_PAGE]:
            operator, advertised, bond_class, status, whole = (page.take(count) for count in (20, 4, 1, 1, 1))
            need(whole in (b"\0", b"\1"), "the records are malformed")
            descriptor = page.take(page.number(2)) if whole == b"\1" else None
            digest = page.take(32) if descriptor is None else keccak(descriptor)
            words = (word(relay), operator, digest, advertised, bond_class, status)
            need(keccak(b"".join(one.rjust(32, b"\0") for one in words)) == record, f"the record of relay {relay} differs from the chain")
            descriptors[relay] = descriptor
        need(not page.rest, "trailing bytes after the records of a page")
    need(not cursor.rest, "trailing bytes after the records")
    return descriptors


def check_generation(found, least):
    """Refuses firmware below a generation. Manifests of old images lack the generation."""
    said = f"firmware of generation {found}" if type(found) is int else "firmware of no known generation"
    new_enough = type(found) is int and found >= least
    need(new_enough, f"the image starts with {said}; generation {least} or newer is required")


def version_of(versions, image, measured):
    """Returns the newest version of an image with this measurement, and the state of all such versions together.

    The same bytes with other firmware are another version.
    """
    same = [version for version in versions if version["image"] == image]
    need(same, "evidence names an unapproved image")

    def reports(shape):
        return measured == (shape.get("launch") or [shape["mrtd"]] + shape["rtmrs"])

    running = [version for version in same if any(map(reports, version["shapes"]))]
    need(running, "the measurement does not match the image that evidence names")
    states = [version["state"] for version in running]
    return running[-1], next(state for state in BY_WEIGHT if state in states)


def check_staple(evidence, binding, network, descriptors, blocks, images, floors, least):
    """Checks evidence against its binding and the chain.

    The binding must match the signed report data, a relay of the chain and its current key, epoch and role, a block of
    the chain and a usable image. The measurement must match that image, and the firmware must be new enough.
    """
    relay = int.from_bytes(binding[32:40], "big")
    need(binding[:32] == network, "evidence is for another network")
    descriptor = descriptors.get(relay)
    need(descriptor is not None, "evidence is for a relay that is not on the chain, or whose descriptor was withheld")
    # Sizes: version 1, roles 1, key epoch 4, handshake key 32.
    need(binding[40:72] == descriptor[6:38], "evidence is for another key of the relay")
    need(binding[72:76] == descriptor[2:6] and binding[76] == descriptor[1], "evidence is for another epoch or role")
    data = hashlib.sha512(b"openrelay-attest-v1\0" + struct.pack(">H", len(binding)) + binding).digest()
    if evidence[0] == 2:
        report, measured = evidence[0x50 + 1 : 0x90 + 1], evidence[0x90 + 1 : 0xC0 + 1].hex()
    else:
        body = evidence[3 + 48 :]
        report, measured = body[520:584], [body[136:184].hex()] + [body[at : at + 48].hex() for at in (328, 376, 424, 472)]
    need(report == data, "the report data does not match the binding")
    image, block, height = binding[77:109], binding[109:141], int.from_bytes(binding[141:149], "big")
    need(blocks.get(height) == block, "evidence names a block that is not on the chain")
    version, state = version_of(images, image.hex(), measured)
    need(state in ("active", "deprecated"), f"evidence names an image that is {state}")
    check_generation(version.get("firmware_generation"), least)
    intel_floor, collateral = floors
    if evidence[0] == 2:
        check_amd_firmware(evidence[1:], collateral)
    else:
        check_intel_firmware(evidence, intel_floor, collateral)


def reading(arguments):
    cursor = Cursor(open(arguments.file, "rb").read())
    head = b"openrelay-reading/3\n"
    need(cursor.take(len(head)) == head, "not a reading")
    header_rlp = cursor.take(cursor.number(4))
    header, block = rlp(header_rlp), keccak(header_rlp)
    number, state_root = int.from_bytes(header[8], "big"), header[3]
    need(arguments.block in (None, block), "the reading is for another block")
    account, proof = cursor.account(), cursor.proof()
    need(trie_value(state_root, arguments.directory, proof) == account_rlp(account), "the proof of the directory's account shows another account")
    states = dict(proven_slots(cursor, state_root) for _ in range(cursor.number(1)))
    attestation = cursor.take(cursor.number(4))
    descriptors = records_of(cursor.rest, account[2])
    bundle, manifests, statements, headers, staples = read_attestation(attestation)
    for name in ("images", "collateral"):
        need(getattr(arguments, name) in states, f"the reading has no proof of --{name}")
    voted, entry_slots = approved_images(states[arguments.images]), states[arguments.collateral]
    network = keccak(b"openrelay chain\n" + arguments.chain.to_bytes(8, "big") + arguments.directory)
    current = word(slot(entry_slots, CURRENT, "the collateral"))
    need(hashlib.sha256(bundle).digest() == current, "the collateral is not the one that validators approved")
    blocks = {number: block}
    for rlp_of in headers:
        height = int.from_bytes(rlp(rlp_of)[8], "big")
        if height < number:
            held = slot(states[HISTORY], height % SERVED, "a block that evidence names")
            need(word(held) == keccak(rlp_of), "a header belongs to no block of the chain")
            blocks[height] = keccak(rlp_of)
    floors = floors_of(bundle, entry_slots)
    time, images = int.from_bytes(header[11], "big"), []
    for image in voted:
        for text in manifests:
            manifest = json.loads(text)
            hashes = bytes.fromhex(manifest["image"]) + hashlib.sha256(text).digest()
            if keccak(hashes) == image["value"]:
                state = state_of(image, voted, time, arguments.haste)
                digest = statement_hash(arguments.chain, arguments.images, image["round"], image["value"])
                signers = {signer(digest, signature) for number, signature in statements if number == image["round"]}
                rebuilt_by = sorted(one for one in signers if one)
                images.append(dict(manifest, state=state, rebuilt_by=rebuilt_by, **image))
    refused = []
    for evidence, binding in staples:
        relay = int.from_bytes(binding[32:40], "big")
        try:
            least = arguments.min_firmware_generation
            check_staple(evidence, binding, network, descriptors, blocks, images, floors, least)
        except Refused as why:
            refused.append({"relay": relay, "why": str(why)})
    found = {
        "schema": "openrelay.second-verifier/1",
        "block": number,
        "block_hash": block.hex(),
        "directory_root": account[2].hex(),
        "images": [{key: one[key] for key in ("image", "round", "state", "rebuilt_by")} for one in images],
        "relays": len(descriptors),
        "evidence": len(staples),
        "refused": refused,
        "holds": bool(images) and len(refused) < len(staples),
    }
    print(json.dumps(found))
    need(images, "no image has a manifest that validators approved")
    need(len(refused) < len(staples), "no evidence of any relay is valid")


# --- Inputs ---


def inputs(arguments):
    lock = tomllib.load(open(arguments.lock, "rb"))
    for package in lock["package"]:
        path = os.path.join(arguments.inputs, package["sha256"])
        data = open(path, "rb").read()
        need(hashlib.sha256(data).hexdigest() == package["sha256"], f"{package['name']} has another SHA-256")
        need(len(data) == package["size"], f"{package['name']} has another size")
    print(json.dumps({"schema": "openrelay.second-verifier/1", "inputs": len(lock["package"])}))


# --- Images: what firmware and chips report ---


def sections(image):
    signature = struct.unpack_from("<I", image, 0x3C)[0]
    count, = struct.unpack_from("<H", image, signature + 6)
    optional, = struct.unpack_from("<H", image, signature + 20)
    table, found = signature + 24 + optional, {}
    for number in range(count):
        name, size, _, held, begin = struct.unpack_from("<8sIIII", image, table + 40 * number)
        need(begin + held <= len(image), "the image is truncated")
        found[name.rstrip(b"\0").decode()] = image[begin : begin + size]
    return found


def guid(text):
    a, b, c, d, e = text.split("-")
    return struct.pack("<IHH", int(a, 16), int(b, 16), int(c, 16)) + bytes.fromhex(d + e)


def footer(firmware):
    end = len(firmware) - 32
    need(firmware[end - 16 : end] == guid("96b582de-1fb2-45f7-baea-a366c55a082d"), "the firmware has no GUID table")
    size, = struct.unpack_from("<H", firmware, end - 18)
    rest, begin, found = end - 18, end - size, {}
    while rest > begin + 18:
        length, = struct.unpack_from("<H", firmware, rest - 18)
        found[firmware[rest - 16 : rest]] = firmware[rest - length : rest - 18]
        rest -= length
    return found


def first_state(begins, signature):
    page = bytearray(4096)
    for at in (0x00, 0x20, 0x30, 0x40, 0x50):
        struct.pack_into("<HHIQ", page, at, 0, 0x93, 0xFFFF, 0)
    struct.pack_into("<HHIQ", page, 0x10, 0xF000, 0x9B, 0xFFFF, begins & 0xFFFF0000)
    for at, attributes in ((0x60, 0), (0x70, 0x82), (0x80, 0), (0x90, 0x8B)):
        struct.pack_into("<HHIQ", page, at, 0, attributes, 0xFFFF, 0)
    numbers = {0xD0: 0x1000, 0x148: 0x40, 0x158: 0x10, 0x160: 0x400, 0x168: 0xFFFF0FF0, 0x170: 2}
    numbers |= {0x178: begins & 0xFFFF, 0x268: 0x0007040600070406, 0x310: signature, 0x3B0: 1, 0x3E8: 1}
    for at, number in numbers.items():
        struct.pack_into("<Q", page, at, number)
    struct.pack_into("<I", page, 0x408, 0x1F80)
    struct.pack_into("<H", page, 0x410, 0x37F)
    return bytes(page)


def launch_digest(firmware, parts, cmdline, processors, signature):
    sha256, sha384 = (lambda data: hashlib.sha256(data).digest()), (lambda data: hashlib.sha384(data).digest())
    table, digest = footer(firmware), bytes(48)

    def add(kind, at, content):
        nonlocal digest
        digest = sha384(digest + content + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, at))

    for at in range(0, len(firmware), 4096):
        add(1, (1 << 32) - len(firmware) + at, sha384(firmware[at : at + 4096]))
    back, = struct.unpack("<I", table[guid("dc886566-984a-4798-a75e-5585a7bf67cc")])
    hashes_at, = struct.unpack_from("<I", table[guid("7255371f-3a3b-4b04-927b-1da6efa8d454")])
    magic, _, _, count = struct.unpack_from("<4sIII", firmware, len(firmware) - back)
    need(magic == b"ASEV", "the firmware has no SEV metadata")
    page = bytearray(4096)
    one = lambda name, data: guid(name) + struct.pack("<H", 50) + sha256(data)
    hashes = guid("9438d606-4f22-4cc9-b479-a793d411fd21") + struct.pack("<H", 168)
    hashes += one("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", cmdline + b"\0")
    hashes += one("44baf731-3a2f-4bd7-9af1-41e29169781d", parts[".initrd"])
    hashes += one("4de79437-abd2-427f-b835-d5b172d2045b", parts[".linux"])
    page[hashes_at % 4096 : hashes_at % 4096 + len(hashes)] = hashes
    measured = False
    for number in range(count):
        at, size, kind = struct.unpack_from("<III", firmware, len(firmware) - back + 16 + 12 * number)
        if kind in (1, 4):
            for offset in range(0, size, 4096):
                add(3, at + offset, bytes(48))
        elif kind in (2, 3):
            add(5 if kind == 2 else 6, at, bytes(48))
        else:
            need(kind == 0x10, "the firmware has a section of unknown type")
            measured = True
            add(1, at, sha384(bytes(page)))
    need(measured, "the firmware leaves the kernel unmeasured")
    others, = struct.unpack("<I", table[guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e")])
    for number in range(processors):
        add(2, 0xFFFFFFFFF000, sha384(first_state(0xFFFFFFF0 if number == 0 else others, signature)))
    return digest.hex()


def image(arguments):
    data, firmware = open(arguments.image, "rb").read(), open(arguments.firmware, "rb").read()
    lock, parts = tomllib.load(open(arguments.lock, "rb")), sections(data)
    need(parts[".cmdline"].decode() == lock["cmdline"], "the image has another command line than the lock file")
    generations = [package.get("generation") for package in lock["package"] if package["role"] == "firmware"]
    need(len(generations) == 1, "the lock file must have exactly one firmware package")
    check_generation(generations[0], arguments.min_firmware_generation)
    register = bytes(32)
    for name in (".linux", ".cmdline", ".initrd", ".uname", ".sbat"):
        for content in (name.encode() + b"\0", parts[name]):
            register = hashlib.sha256(register + hashlib.sha256(content).digest()).digest()
    digests = {
        f"{shape['processor']} x {count}": launch_digest(
            firmware, parts, parts[".cmdline"], count, shape["signature"]
        )
        for shape in lock["shape"]
        for count in shape["counts"]
    }
    found = {"schema": "openrelay.second-verifier/1", "image": hashlib.sha256(data).hexdigest(), "pcr11": register.hex(), "snp": digests}
    print(json.dumps(found))
    if arguments.manifest:
        manifest = json.load(open(arguments.manifest, "rb"))
        need(manifest["image"] == found["image"], "the manifest is for another image")
        named = manifest.get("firmware_generation")
        need(named == generations[0], "the manifest has another firmware generation than the lock file")
        said = {shape["name"]: shape["launch"] for shape in manifest["shapes"] if "launch" in shape}
        need(said == digests, "the manifest has other launch digests")


def hexadecimal(length):
    def parse(text):
        data = bytes.fromhex(text.removeprefix("0x"))
        if len(data) != length:
            raise argparse.ArgumentTypeError(f"must be {length} bytes in hexadecimal digits")
        return data

    return parse


def between(least, most):
    def parse(text):
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}")
        return int(text)

    return parse


def main():
    need(keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470", "the Keccak self-test failed")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("reading")
    one.add_argument("file")
    for name in ("--directory", "--images", "--collateral"):
        one.add_argument(name, required=True, type=hexadecimal(20))
    one.add_argument("--block", type=hexadecimal(32))
    one.add_argument("--chain", type=between(0, (1 << 64) - 1), required=True, help="chain ID")
    one.add_argument("--time-divisor", "--haste", dest="haste", type=between(1, 1 << 16), default=1, help="time divisor of a development network")
    one.set_defaults(run=reading)
    one = commands.add_parser("inputs")
    one.add_argument("lock")
    one.add_argument("--inputs", required=True)
    one.set_defaults(run=inputs)
    one = commands.add_parser("image")
    one.add_argument("image")
    one.add_argument("--lock", required=True)
    one.add_argument("--firmware", required=True)
    one.add_argument("--manifest")
    one.set_defaults(run=image)
    for name in ("reading", "image"):
        least = commands.choices[name].add_argument("--min-firmware-generation", type=between(0, (1 << 32) - 1))
        least.default, least.help = MIN_FIRMWARE_GENERATION, "oldest firmware generation that images may start with"
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except Refused as why:
        print(f"verify.py: refused: {why}", file=sys.stderr)
        sys.exit(5)
    except OSError as why:
        print(f"verify.py: {why}", file=sys.stderr)
        sys.exit(1)
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError, struct.error) as why:
        print(f"verify.py: refused: the file is malformed ({type(why).__name__}: {why})", file=sys.stderr)
        sys.exit(5)


if __name__ == "__main__":
    main()
