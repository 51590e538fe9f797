"""How src/taufree/data/compounds.json was made: small compounds from SMILES, by RDKit.

Force-field geometries (MMFF94, or UFF where it has no parameters) are near but not at the minimum
of any electronic method, which is what training wants. Compounds whose formula is in the
validation or test split are left out.
Run: pip install rdkit; python 0011_compounds.py > compounds.json
"""

import itertools
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

from pyscf import gto
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem

from taufree.data.splits import splits
from taufree.data.systems import System

HALOGENS = {"F", "Cl", "Br"}
MOST_FUNCTIONS = {True: 185, False: 112}
"""Largest basis set of a compound with two or more halogens, for which fewer molecules stand in the
G2 set, and of another: larger ones cost more and teach less."""
SMILES = """
CCCC CCO CCCO CC(C)O OCCO CC(O)C=O OCC=O OC=CO C1CO1 C1CCO1 C1CCOC1 C1COCO1 COC COCO CCOC=O CC=O
CCC=O CC(=O)C C=CC=O O=CC=O CC(=O)C=O O=C=C=O C=C=O CC=C=O C=C=C=O C1=CC(=O)C1 C1CC1=O C(=O)O
CC(=O)O C=CC(=O)O OC(=O)C(=O)O O=C(O)O COC(=O)C CC(=O)OC=O OCC(=O)O O=C1CCO1 NC=O CC(=O)N CNC=O
NC(=O)N NCC(=O)O N=C=O CN=C=O N#CO OC#N CN CNC CN(C)C CCN NCCN NC=C C=NC N=CC N=CN NC(=N)N C#CN
N#CCN N#CC=C N#CC#C N#CC=O N#CCO CCC#N C[N+]#[C-] N#CN N#CNC=O C=NN NN=C=O CNN N=N CN=N CN=NC NNC
N=[N+]=[N-] CN=[N+]=[N-] C=[N+]=[N-] NO CNO C=NO CC=NO ON=O CON=O O=NN O=[N+]([O-])N O=[N+]([O-])O
C1=NC=CO1 C1=CON=C1 C1=CNC=N1 C1=CNN=C1 C1=NNC=N1 c1ccncc1 c1cnccn1 c1ncncn1 C1=CN=CN1 c1ccnnc1
N1C=CC=C1 C1CN1 C1CCN1 C1=CC=NC1 C1=NC1 C=CC=C C=CC#C C#CC#C CC#C CCC#C CC=C CC=CC C=C=C C=C=C=C
C1=CC1 C=C1CC1 C1CCC1 C1=CCC1 C1=CCCC1 C1=CCC=C1 C1CCCC1 C1CC2CC12 C12C3C1C23 C=CCC=C CC(=C)C
c1ccccc1C c1ccccc1F c1ccccc1O c1ccccc1N C=C(C=C)C CF CCF C(F)F C(F)(F)F FC=CF FC(F)=C FC#C FC#CF
FC#N FC=O FC(=O)F CC(=O)F OC(F)F FCF FC(F)C(F)F FCCF OF FOF NF FNF FN=NF FN=O FN=C FC1CC1
C(F)(F)(F)C(F)(F)F FC1=CC=CO1 FCC=O OCF FC=C=C FCC#N COF CC(F)(F)F FOO FOOF O=C(F)C(=O)F
FC(F)(F)OF CCCl ClCCl ClC=C ClC=CCl ClC#C ClC#CCl ClC#N ClC=O ClC(=O)Cl CC(=O)Cl ClCCCl ClC=CF
ClC(F)F ClC(F)(F)F FC(Cl)=O NCl ClNCl CNCl ClOCl ClN=C ClN ClON=O COCl ClC(Cl)=C ClCC=O ClCC#N
ClC1CC1 OCCCl ClSCl ClS ClSSCl ClN(Cl)Cl ClO[N+](=O)[O-] ClC(Cl)(Cl)F ClOC=O ClC=NO O=Cl(=O)F
O=Cl(=O)O O=Cl(=O)(=O)O FCl(F)(F)(F)F O=ClF ClOF CS CCS CSC CSSC SC=O C=S CC=S S=C=C S=C=S CC(=S)C
NC=S CC(=O)S SC#N CN=C=S N=C=S SCS SS SSS S=C=CC C1CSC1 C1=CSC=N1 C1=CSN=C1 CS(=O)C CS(=O)(=O)C
OS(=O)O O=S=O O=S(=O)=O OS(=O)(=O)O S=S=O S=O FSF FS(F)(F)F FS(=O)F FS(=O)(=O)F CSF FSSF ClS(=O)Cl
NS FS(F)(F)(F)(F)Cl NSN N=S=O SO SN=O C=S=O CSN SCC#N S1SC1 C1SSC1 CSCl N#SF S=C(F)F S=C(Cl)Cl
SC=C FC(F)(F)S CSC#N CSC=C C1SC=C1 C=CSC S1C=CN=N1 CP CPC PP P=P PN P=N CP=O C=P P#C CC#P PC=O PO
P(O)O P(=O)O OP(=O)O OP(=O)(O)O FP ClP PF PCl P(Cl)F FP(F)(F)(F)F O=P(F)(F)F O=P(Cl)(Cl)Cl ClP(F)F
P1PP1 P12P3P1P23 P1C=C1 PC#N PS S=P S=P(F)(F)F PC=C PCC FP=O ClP=O N=P O=PN O=P=O PSP CP(C)C NP
PNP PC#C P1CC1 PP=O C1=CPC=C1 P(F)(F)C C[SiH3] [SiH3]F [SiH2](F)F F[Si](F)(F)Cl Cl[SiH3] [SiH3]O
[SiH3]N [SiH3]S [SiH3]P [SiH3]C#C [SiH3]C=C [SiH3][SiH2][SiH3] C[SiH2]C [SiH2]=C [SiH2]=O O=[Si]=O
[SiH3]O[SiH3] [SiH3]S[SiH3] [SiH3]C#N S=[Si]=S [SiH3]CF C[Si](F)(F)F [SiH2]1CC1 [SiH2]=[SiH2]
O[Si](O)(O)O Cl[SiH2]Cl [SiH3]CC [SiH2]=S [SiH3]NC [SiH3]N=C=O BC B(C)C OB OB(O)O BO BN B(N)N FB
FBF B(F)(F)C ClB ClBCl B(Cl)(Cl)Cl B(Cl)(Cl)F BS O=BO O=BF S=BF N=B B#N CB(C)C BF BCl B=O BC#N
BC=C BP NBN OBF B1OBO1 B1NBNBN1 OBO B(O)C FB(F)N C1=CB1 BB C[Al] [AlH2]C [AlH2]F F[Al]F [AlH2]Cl
[AlH2]O O=[Al]O [AlH2]N [AlH2]S [AlH2]P C[Al](C)C O=[AlH] F[AlH]F Cl[Al]F [Li]C [Li]O [Li]N [Li]Cl
[Li]S [Li]C#C [Li]C#N [Li]OF [Li]O[Li] [Li]S[Li] [Li]P [Li][Na] [Na]C [Na]O [Na]F [Na]N [Na]C#N
[Na]S [Na]C#C [Na]O[Na] [Na]P C[Be]C F[Be]F O[Be]O Cl[Be]Cl C[BeH] F[BeH] N[BeH] O=[Be] S=[Be]
C[Mg]C F[Mg]F O[Mg]O Cl[MgH] C[MgH] [MgH]F O=[Mg] S=[Mg] [Li]C=C [Li]C(F)F [Na]C=O [CH2]O C[CH]C
[CH2]F F[C]F C[O] CO[O] [O]O [CH2]C#N [CH2]C=C C=[CH] C#C[CH2] [CH2]Cl Cl[C]Cl N[CH2] [NH]C [N]=O
[O]F [O]Cl O=[C]F O=[C]C O=[C]Cl C[S] [S]O F[N]F Cl[O] [S]S C=C[O] [CH2]S [SiH3] C[SiH2] F[Si]F
F[SiH2] [PH]C F[P]F [CH2][CH2] [NH2] [SH] F[S] Cl[S] [N]=C=O [S]C#N N#C[O] [CH]=C=O [B]F F[B]F
O=[B] O=[Al] C#[C] [C]#N [Si]F C[Si] O=[P] F[C] Cl[C]F [O]N=O [S]=P F[CH]F O=[N] S=[N] [B]O [AlH]C
F[CH2] FC(F)=C(F)C FC(F)C(F)(F)F ClC(Cl)=C(Cl)C FC(Cl)=C(F)Cl FC(F)=C(F)Cl FC(F)(F)C(F)F
FN(F)N(F)F FC(F)=NF FN(F)C(F)(F)F FB(F)B(F)F FC(F)(F)B(F)F Cl[Al](Cl)C F[Al](F)O Cl[Al](F)F
F[Al](F)Cl Cl[Al](Cl)F Cl[AlH]Cl Cl[Al](Cl)O FCl FCl(F)F FClF ClCl(F)F FClCl FOCl FOOCl ClOOCl
F[Si](F)(F)[Si](F)(F)F Cl[SiH](Cl)Cl F[SiH](F)F F[Si](Cl)(Cl)F FP(F)Cl FP(F)P(F)F FS(F)=O
ClS(=O)(=O)Cl FS(F)(=O)=O FS(Cl)(=O)=O FC(F)(F)S FC(F)(F)Cl FC(F)=O ClCC(F)(F)F FC(F)(F)C#N
FC(F)(F)C=O FC#CC FC(F)C#C F[Mg]Cl F[Be]Cl Cl[Mg]C Cl[Be]C
CBr BrCBr C(Br)(Br)Br BrC=C BrC#C BrC#N BrC=O BrCF BrCCl BrC(F)(F)F CCBr OBr NBr FBr BrF(F)F BrBr
BrO[Br] BrSBr BrS BrP BrP(Br)Br Br[SiH3] Br[SiH2]Br Br[SiH2]F BrB BrBBr BrB(Br)Br [Li]Br [Na]Br
Br[Mg]Br Br[Be]Br Br[AlH2] Br[Al](Br)Br BrN=O BrCC#N BrC(=O)C BrClBr BrOC [CH2]Br O[Br] FC(Br)=C
C[SeH] C[Se]C [SeH2] O=[Se]=O O=[Se] S=[Se] [Se]=C=O [Se]=C=S [Se]=C=[Se] F[Se]F F[Se](F)(F)F
Cl[Se]Cl O=[Se](F)F C=[Se] N#C[SeH] [SeH][SeH] C[Se]F [SiH3][SeH] O=[Se](=O)=O
C[AsH2] [AsH3] F[As](F)F Cl[As](Cl)Cl O[AsH2] N#[As] C#[As] [AsH2]F [AsH2]Cl C=[AsH] C[As](C)C
[AsH2][AsH2] N[AsH2] F[As](F)(F)(F)F [SiH3][AsH2] O=[AsH]
C[GeH3] [GeH4] F[GeH3] Cl[GeH3] F[Ge](F)(F)F Cl[Ge](Cl)(Cl)Cl F[Ge]F Cl[Ge]Cl O=[Ge]=O O=[GeH2]
S=[Ge]=S [GeH3][GeH3] O[GeH3] N[GeH3] [SiH3][GeH3] [GeH3]C#C [GeH3]C#N [GeH3]S [GeH3]Br
Br[Ge]Br F[Ga](F)F Cl[Ga](Cl)Cl F[GaH2] O[GaH2] F[Ga] Cl[Ga] C[Ga](C)C
[K]F [K]Cl [K]O [K]C [K]N [K]S [K]C#N [K]Br [K]O[K] [K]C#C F[Ca]F Cl[Ca]Cl O[Ca]O F[CaH]
[CaH2] O=[Ca] C[Zn]C F[Zn]F Cl[Zn]Cl [ZnH]C [ZnH]F O[Zn]O
"""  # fmt: skip

GROUPS = "C N O F [SiH3] P S Cl B [AlH2] [Li] C#N C#C C=O C=C N=O Br [GeH3] [SeH]".split()
LINKS = (
    "{}{}",
    "{}O{}",
    "{}S{}",
    "{}N{}",
    "{}C{}",
    "{}C#C{}",
    "{}N=C{}",
    "{}P{}",
    "{}[SiH2]{}",
    "{}B{}",
    "{}C(=O){}",
    "{}C=C{}",
)
COMBINED, MOST_COMBINED = 300, 130
"""So many molecules of two groups and a link, drawn at random, with at most so many functions."""


def combined() -> Iterator[str]:
    """Two groups and a link between them, in a random order that is always the same."""
    pairs = itertools.combinations_with_replacement(GROUPS, 2)
    found = [link.format(a, b) for (a, b), link in itertools.product(pairs, LINKS)]
    random.Random(5).shuffle(found)
    yield from found


def main() -> None:
    """Print one JSON object: name (the SMILES) -> symbols, spin, basis, positions in ångström."""
    RDLogger.DisableLog("rdApp.*")
    held_out = set(splits()["validation"]) | set(splits()["test"])
    compounds, seen = {}, set()
    n_written = len(SMILES.split())
    for rank, smiles in enumerate([*SMILES.split(), *combined()]):
        is_combined = rank >= n_written
        if not is_combined:
            n_listed = len(compounds) + 1
        if is_combined and len(compounds) >= n_listed + COMBINED:
            break
        compound = build(smiles)
        if compound is None:
            print(f"{smiles}: no geometry", file=sys.stderr)
            continue
        unit = [(0.0, 0.0, 0.0)] * len(compound["symbols"])
        formula = System(smiles, tuple(compound["symbols"]), tuple(unit)).formula
        canonical = Chem.CanonSmiles(smiles)
        halogens = sum(symbol in HALOGENS for symbol in compound["symbols"])
        atoms = zip(compound["symbols"], compound["positions"], strict=True)
        mol = gto.M(atom=list(atoms), basis=compound["basis"], spin=compound["spin"])
        if formula in held_out or canonical in seen:
            continue
        if mol.nao > (MOST_COMBINED if is_combined else MOST_FUNCTIONS[halogens >= 2]):
            continue
        seen.add(canonical)
        compounds[smiles] = compound
    print(json.dumps(compounds, separators=(",", ":")).replace("},", "},\n"))


def build(smiles: str) -> dict[str, Any] | None:
    """Embed and relax one molecule; None if RDKit cannot."""
    plain = Chem.MolFromSmiles(smiles)
    if plain is None or Chem.GetFormalCharge(plain):
        return None
    molecule = Chem.AddHs(plain)
    if AllChem.EmbedMolecule(molecule, randomSeed=7, useRandomCoords=True) != 0:
        return None
    try:
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
        else:
            AllChem.UFFOptimizeMolecule(molecule, maxIters=2000)
    except (RuntimeError, ValueError):
        return None
    positions = molecule.GetConformer().GetPositions()
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    electrons = sum(atom.GetAtomicNum() for atom in molecule.GetAtoms())
    return {
        "symbols": symbols,
        "spin": electrons % 2,
        "basis": "def2-tzvp",
        "positions": [[round(x, 3) for x in row] for row in positions.tolist()],
    }


if __name__ == "__main__":
    main()
